# What outlives a test of a broker of its own: started before that broker, it waits for the end of its stdin, which is the
# end of the test in whatever way, and then ends and removes all that the broker has and is:
#
#   sh own_broker.sh DIR
set -u
dir=$1
cat >/dev/null

# The server, its port mapper and helpers are known by their environment.
processes() { grep -lzsx "PREWARM_TEST_BROKER=$dir" /proc/[0-9]*/environ | cut -d/ -f3; }

for _ in $(seq 100); do
    pids=$(processes)
    [ "$pids" ] || break
    # shellcheck disable=SC2086 # one word a number
    kill -KILL $pids 2>/dev/null
    sleep 0.05
done
rm -rf --one-file-system "$dir"

left=$(processes; ls -d "$dir" 2>/dev/null)
[ -z "$left" ] || { echo "left behind by the broker in $dir: $left" >&2; exit 1; }
