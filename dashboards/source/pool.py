"""One pool, or some: is it stocked as it should be, and what do its jobs do?"""

from . import served
from .grafana import (
    POOLS, dashboard, heatmap, lines, quantiles, rate, row, to_dashboard, to_worker,
)


def leases():
    return lines(
        "Leases", "ops",
        """Containers given to jobs each second: at once (hit), or after a wait (miss). The sum is the rate of jobs that the
        pool sizes itself on. Misses that come in spikes are bursts that are larger than the stock: raise `idle.min`.
        Misses at all times are a pool that can't keep up: compare with Containers made, and see what `sizing` in
        `/status` says about the reason.""",
        [(rate("prewarm_pool_leases_total", "result"), "{{result}}")], stacked=True,
        colors={"hit": "green", "miss": "red"},
    )


def lease_wait():
    return lines(
        "Wait for a container", "s",
        """From asking for a container to having it, hits and misses together. It is the part of start-up that the pool
        answers for: with hits alone it is microseconds, and p99 jumps to the warm-up time as soon as one job in a hundred
        is a miss. When it comes near `worker.lease_timeout` jobs give up and are tried again elsewhere, and end as
        `error` at last: then no container is to be had at all, see Pools that can serve.""",
        quantiles("prewarm_lease_wait_seconds"),
    )


def idle():
    return lines(
        "Idle against target", "short",
        """For each worker, idle containers and how many are wanted. The target moves with the rate of jobs between
        `idle.min` and `idle.max`, up at once and down slowly. Idle at 0 for long means that every job is a miss,
        or that the worker drains (its target is 0 then). Idle
        above target is about to shrink. A target that stays at `idle.max` is a pool that wants more than it may have:
        raise it, or accept the misses.""",
        [
            (f'sum by (instance, pool) (prewarm_pool_containers{{{POOLS}, state="idle"}})', "{{instance}} {{pool}} idle"),
            (f"sum by (instance, pool) (prewarm_pool_target{{{POOLS}}})", "{{instance}} {{pool}} target"),
        ],
        links=to_worker(),
    )


def made():
    return lines(
        "Containers made", "ops",
        """Containers that became ready each second, beside those that jobs took. With isolation `container` each job takes
        one, so made must keep up with leases over any longer time, and the most that an engine can make (3 to 10 a second
        for one Docker engine) is the most that the pool can run on it. With isolation `namespace` containers come back,
        and hardly any are made. If made is flat while leases rise, add workers on other hosts.""",
        [
            (rate("prewarm_warmup_seconds_count", "pool"), "{{pool}} made"),
            (rate("prewarm_pool_leases_total", "pool"), "{{pool}} leased"),
        ],
    )


def warm_up():
    return lines(
        "Warm-up", "s",
        """From a container's creation to its being ready: what a miss waits at least, and what the pool's size is computed
        from. It rises with the number of creations at once (`engine.creations`), with the network mode (`bridge` costs
        most, `none` and `host` least), and with anything else that keeps the engine's host busy. A slow rise over days is
        often an engine that needs cleaning up: `docker system df`.""",
        quantiles("prewarm_warmup_seconds"),
    )


def warm_up_heatmap():
    return heatmap(
        "Warm-up, all containers",
        """How many containers took how long from creation to ready. One narrow band is a healthy engine. A band that
        widens with the load is an engine that makes several at once: fewer `engine.creations` may make each faster and all
        not slower. Points far above are creations that waited for a disk or a lock in the engine; if they come often,
        look at the host's disk.""",
        "prewarm_warmup_seconds",
    )


def run_heatmap():
    return heatmap(
        "Run time, all jobs",
        """How many jobs ran for how long, up to a day. It shows what the quantiles average away: short and long jobs in
        one pool are two bands. If those differ much in what they need, give them a pool each, so that long ones don't hold
        all seats of short ones. A sharp upper edge is the timeout; jobs that pile up there are `timed_out`.""",
        "prewarm_run_seconds",
    )


def queue_heatmap():
    return heatmap(
        "Wait in the queue, all jobs",
        """How many jobs waited for how long between their publisher's `timestamp` and their delivery. Everything in the
        lowest rows is a fleet with seats to spare. A band that climbs with time is a queue that grows: add workers before
        it meets the publishers' patience. Single points at 1 s, 10 s, 1 min and 5 min are retries, which wait so long on
        purpose.""",
        "prewarm_queue_wait_seconds",
    )


def deliveries():
    return lines(
        "Deliveries", "ops",
        """Messages that workers received, first ones and those that had been given out before (redelivered). Redelivered
        ones come after a worker or a connection died, or were handed back by a worker that stops. A few at each rollout
        are normal. At all times they are a worker that keeps losing its connection or its life: see Restarts, and
        Connection to the broker. If a job kills workers, `broker.delivery_limit` ends it as a dead letter.""",
        [(rate("prewarm_deliveries_total", "redelivered"), "redelivered: {{redelivered}}")],
        colors={"redelivered: true": "orange"},
    )


def output():
    return lines(
        "Output", "Bps",
        """Bytes that jobs printed each second, by stream. All of it goes through the worker and, with `logs` = `stream`,
        through the broker to the reply queue. A sudden rise costs the broker most: let such jobs use `logs` = `result`,
        which keeps only the tails, or limit them (`logs_limit`). Jobs whose reader is slow are slowed down themselves,
        through their pipes, for at most `broker.reply_patience`.""",
        [(rate("prewarm_output_bytes_total", "stream"), "{{stream}}")],
    )


DASHBOARD = dashboard(
    "prewarm-pool",
    "prewarm: pools",
    """One pool or some, over all workers that have them: is there always a container, how are they made and given up, and
    what do the jobs do?""",
    [
        row(
            "Are jobs served at once?", served.hits(), leases(), served.hit_start_up(), served.hit_heatmap(),
            served.miss_start_up(), served.miss_heatmap(), lease_wait(),
        ),
        row(
            "Stock", served.containers(), idle(), made(), served.retired(), warm_up(), warm_up_heatmap(),
            served.able(), served.running(),
        ),
        row(
            "Jobs", served.queues(), queue_heatmap(), served.results(), served.badly(), served.run_time(), run_heatmap(),
            served.again(), deliveries(), served.dead_letters(), output(),
        ),
    ],
    [to_dashboard("prewarm-overview", "Overview"), to_dashboard("prewarm-worker", "Workers")],
    broker=True,
)
