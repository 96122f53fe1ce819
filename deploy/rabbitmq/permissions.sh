#!/usr/bin/env bash
# Gives a RabbitMQ user what one part needs, and no more; the user must exist.
#
#   permissions.sh ROLE USER [VHOST [PREFIX]]     VHOST is / and PREFIX is prewarm (broker.prefix) unless given
#   permissions.sh --print ROLE [PREFIX]          the three expressions (configure, write, read), a line each
#
#   worker     declares exchanges and queues, takes jobs, answers (broker.topology = "declare")
#   runner     the same, where somebody else declares them (broker.topology = "check")
#   publisher  publishes jobs and reads the replies to them: submit. May not cancel.
#   operator   a publisher who also cancels, looks at workers and running jobs, and at dead letters: cancel, status, logs, dead
#
# Who may write to the exchange PREFIX.control, an operator, may read what all jobs print (secrets masked), and may cancel them all.
# A worker answers to any queue that a job names (worker.reply_to limits it), since RabbitMQ has one permission for all queues, amq.default.
#
# RABBITMQCTL is the command to call: rabbitmqctl unless set.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

# expressions ROLE PREFIX: sets configure, write and read.
expressions() {
    local p=${2//./\\.}
    # Queues that the broker names, for replies and for what comes from PREFIX.control.
    local own='amq\.gen-.*'
    case $1 in
        worker)
            configure="^($p\.(jobs|control|dead|died|results)|$p\.(jobs|retry)\..*|$own)\$"
            write="^(amq\.default|$p\.jobs|$p\.(jobs|retry)\..*|$own)\$"
            read="^($p\.(jobs|control|died)|$p\.(jobs|retry)\..*|$own)\$"
            ;;
        runner)
            configure="^$own\$"
            write="^(amq\.default|$p\.retry\..*|$own)\$"
            read="^($p\.(control|died)|$p\.jobs\..*|$own)\$"
            ;;
        publisher)
            configure="^$own\$"
            write="^$p\.jobs\$"
            read="^$own\$"
            ;;
        operator)
            configure="^$own\$"
            write="^$p\.(jobs|control)\$"
            read="^($p\.dead|$own)\$"
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
}

case ${1:-} in
    -h | --help) usage ;;
    --print)
        expressions "${2:-}" "${3:-prewarm}"
        printf '%s\n' "$configure" "$write" "$read"
        ;;
    *)
        expressions "${1:-}" "${4:-prewarm}"
        user=${2:?the name of a user}
        # A command line, so it may be several words.
        # shellcheck disable=SC2086
        ${RABBITMQCTL:-rabbitmqctl} set_permissions --vhost "${3:-/}" "$user" "$configure" "$write" "$read"
        ;;
esac
