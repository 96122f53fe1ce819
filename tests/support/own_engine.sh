# What outlives a test of an engine of its own: started before that engine, it waits for the end of its stdin, which is the
# end of the test in whatever way, and then removes all that the engine has and is. Run as root:
#
#   sh own_engine.sh DIR CGROUP
set -u
dir=$1 cgroup=$2
cat >/dev/null

# Engine and shims are known by their environment, what runs in containers by its cgroup.
processes() {
    grep -lzsx "PREWARM_TEST_ENGINE=$dir" /proc/[0-9]*/environ | cut -d/ -f3
    find /sys/fs/cgroup -path "*/$cgroup/*" -name cgroup.procs -exec cat {} + 2>/dev/null
}

# Shims have their sockets elsewhere, and don't remove them when they are killed.
sockets=$(cat "$dir"/state/*/*/*/address 2>/dev/null | sed 's,unix://,\n,g')
for _ in $(seq 100); do
    # A frozen process can't be killed.
    find /sys/fs/cgroup -path "*/$cgroup/*" -name freezer.state 2>/dev/null |
        while read -r state; do echo THAWED >"$state"; done 2>/dev/null
    pids=$(processes)
    [ "$pids" ] || break
    # shellcheck disable=SC2086 # one word a number
    kill -KILL $pids 2>/dev/null
    sleep 0.05
done
awk -v below="$dir/" 'index($2, below) == 1 { print $2 }' /proc/self/mounts | tac |
    while read -r target; do umount -l "$target"; done
# Those of processes that have just ended may be busy for a moment.
for _ in $(seq 100); do
    find /sys/fs/cgroup -depth -type d \( -path "*/$cgroup" -o -path "*/$cgroup/*" \) -exec rmdir {} \; 2>/dev/null
    [ "$(find /sys/fs/cgroup -type d -path "*/$cgroup" -print -quit 2>/dev/null)" ] || break
    sleep 0.05
done
# shellcheck disable=SC2086 # one word a path
[ -z "$sockets" ] || rm -f $sockets
rm -rf --one-file-system "$dir"

left=$(processes; awk -v below="$dir/" 'index($2, below) == 1' /proc/self/mounts
    find /sys/fs/cgroup -type d -path "*/$cgroup" 2>/dev/null; ls -d "$dir" 2>/dev/null)
[ -z "$left" ] || { echo "left behind by the engine in $dir: $left" >&2; exit 1; }
