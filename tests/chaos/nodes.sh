# What outlives a test of RabbitMQ nodes of its own: started before them, it waits for the end of its stdin, which is the end of
# the test in whatever way, and then ends all nodes and removes their files.
#
#   sh nodes.sh DIR
set -u
dir=$1
cat >/dev/null

# Nodes, their helpers and their epmd are known by their environment.
processes() { grep -lzsx "PREWARM_TEST_NODES=$dir" /proc/[0-9]*/environ | cut -d/ -f3; }

for _ in $(seq 100); do
    pids=$(processes)
    [ "$pids" ] || break
    # shellcheck disable=SC2086 # one word a number
    kill -KILL $pids 2>/dev/null
    sleep 0.05
done
rm -rf --one-file-system "$dir"

left=$(processes; ls -d "$dir" 2>/dev/null)
[ -z "$left" ] || { echo "left behind by the nodes in $dir: $left" >&2; exit 1; }
