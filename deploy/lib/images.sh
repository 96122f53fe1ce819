# shellcheck shell=bash
# Images for tests and demo, made from what Debian has: no registry of images is needed. Sourced after servers.sh.
#
#   prewarm-test/busybox  static busybox, users root and app (1000:1000, also in media 2000), probe; CMD sh
#   prewarm-test/scratch  nothing but /probe, which is its ENTRYPOINT
#   prewarm-test/debian   Debian 12, minimal, with bash, git and ca-certificates; user app as above, probe; CMD bash
#   prewarm-test/isolation  busybox's, with traces, escape, and a VOLUME /data
#
# `probe` is test-images/probe.c: it prints what a process sees of itself, and ends in any wanted way. `traces` leaves what a
# job can leave, and looks for it; `escape` tries to get out.

IMAGE_CACHE=$TARGET_DIR/test-images # survives runs; goes with `cargo clean`
IMAGES_BUILT=()

# Changes with the recipe, so that an image of an older one is made again.
recipe() { cat "$ROOT/deploy/lib/images.sh" "$ROOT"/deploy/test-images/*.c | sha256sum | cut -c1-16; }

image_is_current() {
    [[ $(docker image inspect --format '{{index .Config.Labels "prewarm-test.recipe"}}' "$1" 2>/dev/null) == "$(recipe)" ]]
}

# import NAME TARBALL [-c CHANGE]…
import() {
    local name=$1 tarball=$2
    shift 2
    # One of an older recipe is replaced, and stays: somebody else's tests may be using it.
    docker image inspect "$name" >/dev/null 2>&1 || IMAGES_BUILT+=("$name")
    docker import -c "LABEL prewarm-test.recipe=$(recipe)" "$@" "$tarball" "$name" >/dev/null
}

# compile NAME: test-images/NAME.c to a static program in the cache.
compile() {
    local source=$ROOT/deploy/test-images/$1.c program=$IMAGE_CACHE/$1
    [[ $program -nt $source ]] && return 0
    mkdir -p "$IMAGE_CACHE"
    cc -static -O2 -Wall -o "$program.$$" "$source"
    strip "$program.$$"
    mv "$program.$$" "$program"
}

# add_user ROOT: the user and groups that the parity tests name.
add_user() {
    # shellcheck disable=SC2016 # expanded by that shell
    as_root sh -c '
        echo "app:x:1000:1000:app:/home/app:/bin/sh" >>"$1/etc/passwd"
        printf "app:x:1000:\nmedia:x:2000:app\n" >>"$1/etc/group"
        mkdir -p "$1/home/app"
        chown 1000:1000 "$1/home/app"' sh "$1"
}

image_scratch() {
    local dir=$RUN_DIR/scratch
    mkdir "$dir"
    cp "$PROBE" "$dir/probe"
    tar --owner=0 --group=0 --numeric-owner -C "$dir" -cf "$dir.tar" .
    import prewarm-test/scratch "$dir.tar" -c 'ENTRYPOINT ["/probe"]'
}

image_busybox() {
    local dir=$RUN_DIR/busybox applet
    mkdir -p "$dir"/{bin,dev,etc,proc,root,sys,tmp,usr/local/bin,var/tmp}
    chmod 1777 "$dir/tmp" "$dir/var/tmp"
    cp "$(command -v busybox)" "$dir/bin/busybox"
    "$dir/bin/busybox" --list | while read -r applet; do
        [[ $applet == busybox ]] || ln -s busybox "$dir/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$dir/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$dir/etc/group"
    cp "$PROBE" "$dir/usr/local/bin/probe"
    # A program that starts as root whoever calls it: what it leaves behind, a user's init can't kill.
    cp "$PROBE" "$dir/usr/local/bin/probe-setuid"
    # (chown takes the bit away, so it comes last)
    as_root chown -R 0:0 "$dir"
    as_root chmod 4755 "$dir/usr/local/bin/probe-setuid"
    add_user "$dir"
    as_root tar --numeric-owner -C "$dir" -cf "$dir.tar" .
    import prewarm-test/busybox "$dir.tar" -c 'CMD ["sh"]'
}

# The mirror that this machine's apt uses, if it has Debian 12; otherwise debootstrap's own default.
debian_mirror() {
    # shellcheck disable=SC2016 # apt expands these
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 2>/dev/null | head -n 1
}

bootstrap_debian() {
    local dir=$RUN_DIR/debian tarball=$1 mirror
    mirror=$(debian_mirror)
    mkdir -p "$dir" "$IMAGE_CACHE"
    work_into "$RUN_DIR/debootstrap.log" as_root \
        debootstrap --variant=minbase --include=bash,ca-certificates,git bookworm "$dir" ${mirror:+"$mirror"} ||
        { tail -n 15 "$RUN_DIR/debootstrap.log" >&2; die "debootstrap failed (its last lines are above; all: $dir/debootstrap/debootstrap.log)"; }
    # shellcheck disable=SC2016
    as_root sh -c 'cd "$1" && rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/*' sh "$dir"
    add_user "$dir"
    as_root tar --numeric-owner -C "$dir" -cf "$tarball.$$" .
    mv "$tarball.$$" "$tarball"
    as_root rm -rf --one-file-system "$dir"
}

image_debian() {
    local tarball=$IMAGE_CACHE/debian-bookworm.tar dir=$RUN_DIR/debian-extra
    [[ -s $tarball ]] || step "Making a minimal Debian with debootstrap (a minute; kept in ${tarball#"$ROOT"/})" bootstrap_debian "$tarball"
    mkdir -p "$dir/usr/local/bin"
    cp "$PROBE" "$dir/usr/local/bin/probe"
    cp "$tarball" "$dir.tar"
    tar --owner=0 --group=0 --numeric-owner -C "$dir" -rf "$dir.tar" ./usr/local/bin/probe
    import prewarm-test/debian "$dir.tar" -c 'CMD ["bash"]'
    rm -rf "$dir" "$dir.tar"
}

# After busybox, whose root it has as well.
image_isolation() {
    local dir=$RUN_DIR/isolation
    mkdir -p "$dir"/{usr/local/bin,data/below,scratch}
    cp "$IMAGE_CACHE/traces" "$IMAGE_CACHE/escape" "$dir/usr/local/bin/"
    echo content >"$dir/data/file"
    docker create --name "prewarm-test-isolation-$$" prewarm-test/busybox >/dev/null
    docker export -o "$dir.tar" "prewarm-test-isolation-$$"
    docker rm "prewarm-test-isolation-$$" >/dev/null
    tar --owner=0 --group=0 --numeric-owner -C "$dir" -rf "$dir.tar" ./usr/local/bin/traces ./usr/local/bin/escape ./scratch
    tar --owner=1000 --group=1000 --numeric-owner -C "$dir" -rf "$dir.tar" ./data
    import prewarm-test/isolation "$dir.tar" -c 'VOLUME /data'
}

# build_images NAME…: those of scratch, busybox, debian, isolation that the engine doesn't have yet.
build_images() {
    local name
    at_clean_up remove_built_images
    PROBE=$IMAGE_CACHE/probe
    for name in probe traces escape; do compile "$name"; done
    for name in "$@"; do
        image_is_current "prewarm-test/$name" || "image_$name"
    done
}

# An engine that is not ours gets back only what we brought.
remove_built_images() {
    ((${#IMAGES_BUILT[@]})) && ! owns engine || return 0
    docker rmi "${IMAGES_BUILT[@]}" >/dev/null 2>&1 || warn "could not remove all of these images from the engine: ${IMAGES_BUILT[*]}"
}
