"""Panels of what publishers notice: hits, start-up, jobs, queues. The overview and the pools' dashboard have them both."""

from .grafana import (
    BLUE, BROKER, GREEN, GREY, ORANGE, POOLS, RED, WORKERS, YELLOW, apart, heatmap, hit_rate, lines, quantiles, rate,
    share, to_pool,
)

START_UP = "prewarm_startup_seconds"
HIT, MISS = ', lease="hit"', ', lease="miss"'
# The goals that the alerts burn down (deploy/prometheus/rules/slo.yml).
HIT_GOAL, START_UP_GOAL, ERROR_BUDGET = 0.99, 0.005, 0.001


def hits():
    return lines(
        "Hit rate by pool", "percentunit",
        """The share of leases that found an idle container at once; all others waited for one to be made. It is the
        ratio of the summed rates, so a pool or worker with much traffic weighs more, and there is no point where there
        is no traffic. The dashed line is the goal of 99 %. Below it: is the pool empty (Idle against target), are
        containers slow to be made (Warm-up), or do more jobs come than can be made (`prewarm plan`)? Raise `idle.max`
        or `engine.creations`, or add a worker.""",
        [(hit_rate("pool"), "{{pool}}")], goal=(HIT_GOAL, True), max=1, links=to_pool(),
    )


def hit_start_up():
    return lines(
        "Start-up of hits", "s",
        """From the delivery of a job to its entrypoint executing, where a container was idle. The dashed line is the
        goal: p99 within 5 ms. It holds on a machine with a core to spare; if it rises while hits stay high, the worker
        or the engine's host is short of processor time. Compare with the heatmap below: a second band is another pool or another worker, not noise.""",
        quantiles(START_UP, HIT), goal=(START_UP_GOAL, False),
    )


def hit_heatmap():
    return heatmap(
        "Start-up of hits, all jobs",
        """How many hits took how long from delivery to executing entrypoint, by the bounds that the worker counts in.
        Quantiles hide what this shows: two bands are two kinds of jobs, pools or machines; a haze above 5 ms at regular
        times is something else that runs on the host then. A cloud that moves up as a whole means that the host has no
        core free: fewer jobs at once (`concurrency`), or another worker.""",
        START_UP, HIT,
    )


def miss_start_up():
    return lines(
        "Start-up of misses", "s",
        """From the delivery of a job to its entrypoint executing, where the job had to wait for a container. It is
        mostly the time that the engine needs to make one (Warm-up), or less if one was on its way. There is no goal for
        it, since the goal is to have few: but if a miss takes many times the warm-up, jobs queue for containers, and
        `concurrency` is higher than what the engine can make (Engine requests on the worker's dashboard).""",
        quantiles(START_UP, MISS),
    )


def miss_heatmap():
    return heatmap(
        "Start-up of misses, all jobs",
        """How many misses took how long from delivery to executing entrypoint. A band at the warm-up time is what a miss
        costs by itself; what lies above waited for other jobs' containers, or for the breaker of a broken pool. Empty is
        best: every point here is a job that would have been about a hundred times faster with one more idle container
        at that moment. Many of them in a short time are a burst: raise `idle.min` of that pool.""",
        START_UP, MISS,
    )


def results():
    return lines(
        "Results by status", "ops",
        """Jobs that got their result, each second. `succeeded` and `failed` are the job's own exit code; `timed_out` ran
        into its timeout; `cancelled` was not wanted any more; `expired` waited too long in its queue; `rejected` was no
        valid job: tell its publisher; `error` is ours, after the last retry: see Engine errors, and `prewarm dead ls`.
        Attempts that are tried again are not here, but under Attempts tried again.""",
        [(rate("prewarm_jobs_total", "status"), "{{status}}")], stacked=True,
        colors={
            "succeeded": GREEN, "failed": YELLOW, "timed_out": ORANGE, "cancelled": GREY, "expired": BLUE,
            "rejected": "purple", "error": RED,
        },
    )


def running():
    return lines(
        "Jobs in hand", "short",
        """Jobs that workers have taken and not yet ended, and how many of those wait for a container. Flat at the sum of
        all `concurrency` means that the workers are full: if the queue grows at the same time, add workers, or raise
        `concurrency` where the hosts have cores left. Waiting jobs that don't go away are a pool without containers:
        see Containers and Pools that can serve.""",
        [
            (f"sum by (pool) (prewarm_jobs_running{{{POOLS}}})", "{{pool}}"),
            (f"sum (prewarm_pool_waiting{{{POOLS}}})", "wait for a container"),
        ],
        links=to_pool(),
    )


def queues():
    queue = 'queue=~"$prefix[.]jobs[.]$pool"'
    ready = f"max by (queue) (rabbitmq_detailed_queue_messages_ready{{{BROKER}, {queue}}})"
    unacked = f"max by (queue) (rabbitmq_detailed_queue_messages_unacked{{{BROKER}, {queue}}})"
    later = f'max by (queue) (rabbitmq_detailed_queue_messages_ready{{{BROKER}, queue=~"$prefix[.]retry[.].+"}})'
    return lines(
        "Jobs at the broker", "short",
        """From RabbitMQ itself: jobs that wait in each pool's queue (ready), jobs that a worker has (unacked), and jobs
        that wait for their retry. Ready is what to scale by: if it grows for minutes, jobs come faster than all workers
        together end them. Ready without unacked means that nobody consumes: no worker has that pool, or all that have it
        can't serve (Pools that can serve). Empty without any curve: RabbitMQ isn't scraped, see
        `deploy/prometheus/prometheus.yml`, or `broker.prefix` above is another.""",
        [(ready, "{{queue}} ready"), (unacked, "{{queue}} unacked"), (later, "{{queue}}")],
    )


def queue_wait():
    return lines(
        "Wait in the queue", "s",
        """From the publisher's `timestamp` to the delivery to a worker: what a publisher waits before anything begins.
        Only jobs that carry a timestamp count, and it is in whole seconds, so less than a second reads as nothing or as
        one. It includes the delays of retries. If it rises while Jobs in hand is flat at its most, add workers; if jobs
        in hand is low, something keeps workers from taking jobs: see Pools that can serve and Connection to the
        broker.""",
        quantiles("prewarm_queue_wait_seconds", qs=(0.5, 0.95)),
    )


def run_time():
    return lines(
        "Run time", "s",
        """From the entrypoint executing to its end, of jobs that ran to an end. It is the job's own affair, and belongs
        here because it decides how many jobs a worker can do: `concurrency` divided by the mean. A step up without a
        new image is usually something that the jobs depend on; a step to a round figure is a timeout. Compare with
        Results by status, and raise the pool's `timeout` only when you know why.""",
        quantiles("prewarm_run_seconds"),
    )


def containers():
    by_state = f"sum by (state) (prewarm_pool_containers{{{POOLS}}})"
    made = lines(
        "Containers", "short",
        """All containers by state, and how many idle ones are wanted (target, dashed). Idle ones wait for jobs: they
        cost memory and save time. Below target with some starting is a pool that refills. Below target with none
        starting: the breaker is open, the engine is away, or the host's budget (`engine.containers`, `engine.memory`) is
        used up. Many removing: the engine is slow to remove, see Engine requests on the worker's dashboard.""",
        [(by_state, "{{state}}"), (f"sum (prewarm_pool_target{{{POOLS}}})", "target")], stacked=True,
        colors={"idle": GREEN, "starting": YELLOW, "leased": BLUE, "removing": GREY, "target": RED},
    )
    return apart(made, "target")


def retired():
    return lines(
        "Containers given up, by reason", "ops",
        """`used` served their jobs: the normal end. `shrunk` were more than wanted, `age` older than `idle.max_age`,
        `rolled` of yesterday's image or configuration, `budget` made room for another pool, `drained` when
        the worker was told to stop: all of that is upkeep. `failed` never became ready: look at the worker's log and the image. `died` ended
        while idle: somebody or the kernel's OOM killer ended them. `doubt`: nobody knew what state they were in, which
        should be rare.""",
        [(rate("prewarm_containers_retired_total", "reason"), "{{reason}}")], stacked=True,
        colors={"used": GREEN, "failed": RED, "died": ORANGE, "doubt": YELLOW, "drained": GREY},
    )


def able():
    return lines(
        "Pools that can serve", "percentunit",
        """The share of workers on which the pool can serve, but for those that drain. Less than 100 %: on some worker its breaker is open, since
        containers can't be made there (image missing or broken, engine away, disk full) and none is idle. That worker
        takes no jobs of the pool, so others get them, and tries again with growing delays by itself. At 0 nobody can,
        and jobs wait in the queue. `/readyz` and `/status` of the worker say why.""",
        [(
            f"avg by (pool) (prewarm_pool_able{{{POOLS}}} unless on (job, instance) prewarm_draining{{{WORKERS}}} == 1)",
            "{{pool}}",
        )], max=1, links=to_pool(),
    )


def badly():
    """What failed, as a share: of all results, and those of our doing."""
    jobs = "prewarm_jobs_total"

    def of_jobs(status):
        return share(rate(jobs, "pool", f", status{status}"), rate(jobs, "pool"))

    return lines(
        "Share of results that are no success", "percentunit",
        """By pool: what share of the results was `failed` or `timed_out` (the jobs' own affair), and what share was
        `error` (ours, after the last retry). The goal for errors is at most 0.1 %. Errors of one pool are its image;
        errors of one worker are its engine or host; errors everywhere are the broker's or a release of prewarm. Each has
        a dead letter with the reason: `prewarm dead ls`, and `prewarm dead replay` when it is mended.""",
        [
            (of_jobs('=~"failed|timed_out"'), "{{pool}} failed or timed out"),
            (of_jobs('="error"'), "{{pool}} error"),
        ],
        max=1, links=to_pool(),
    )


def again():
    return lines(
        "Attempts tried again", "ops",
        """Attempts that had no result yet: the trouble was ours (no container could be had, one was lost, a worker was
        stopped), or the job failed and asked for `retries`. It is what publishers don't see, and comes before Results
        shows any `error`: so look here first. Repeated jobs were published again, and answered with the result that they
        had; adopted deliveries came back after a lost connection, and caused no second run. Both are harmless.""",
        [
            (rate("prewarm_jobs_retried_total", "pool"), "{{pool}} tried again"),
            (rate("prewarm_jobs_repeated_total"), "repeated"),
            (rate("prewarm_deliveries_adopted_total"), "adopted"),
        ],
        links=to_pool(),
    )


def dead_letters():
    lying = f'max by (queue) (rabbitmq_detailed_queue_messages{{{BROKER}, queue="$prefix.dead"}})'
    return lines(
        "Dead letters", "short",
        """Messages that can't be processed: how many lie in the queue of dead letters (from RabbitMQ), and how many
        workers put there in each interval, by kind. `invalid_job` is the publisher's fault; `no_container`,
        `container_lost` and `worker_stopped` are ours, after the last retry; `delivery_limit` may have killed its
        workers. The broker itself adds expired jobs and those at the delivery limit, unless `broker.expired` is
        `answer`: they are in the depth, not among the kinds. None goes away by itself: `prewarm dead ls`, then
        `replay` or `purge`.""",
        [
            (lying, "{{queue}}"),
            (f"sum by (kind) (increase(prewarm_dead_letters_total{{{POOLS}}}[$__rate_interval]))", "new: {{kind}}"),
        ],
    )
