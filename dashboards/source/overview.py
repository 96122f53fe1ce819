"""The first look: are users served, and if not, where is it?"""

from . import served
from .grafana import (
    GREEN, ORANGE, RED, WORKERS, YELLOW, dashboard, hit_rate, lines, quantile, rate, row, share, stat, steps,
    to_dashboard, to_worker,
)
from .served import ERROR_BUDGET, HIT, HIT_GOAL, START_UP

JOBS = "prewarm_jobs_total"


def in_time(by=""):
    """The share of hits within the goal."""
    return share(rate(f"{START_UP}_bucket", by, f'{HIT}, le="0.005"'), rate(f"{START_UP}_count", by, HIT))


def of_us(by=""):
    return share(rate(JOBS, by, ', status="error"'), rate(JOBS, by))


def figures():
    goal = steps((RED, None), (ORANGE, 0.95), (GREEN, HIT_GOAL))
    return [
        stat(
            "Hit rate", "percentunit",
            """The share of all jobs that found an idle container, now, over the pools and workers chosen above. Green
            from the goal of 99 % on. If it is lower, Hit rate by pool below says which pool it is; nothing is shown
            while there are no jobs.""",
            (hit_rate(), "hit rate"), goal, max=1,
        ),
        stat(
            "Hits within 5 ms", "percentunit",
            """The share of hits whose entrypoint was executing within 5 ms of the delivery. The goal is 99 %, which is the
            same as a p99 of 5 ms at most. If it is lower while the hit rate is good, the hosts are short of processor
            time: see the heatmap of hits.""",
            (in_time(), "within 5 ms"), goal, max=1,
        ),
        stat(
            "Start-up of hits, p99", "s",
            """Ninety-nine of a hundred hits took at most this long from delivery to executing entrypoint. The goal is
            5 ms. It is interpolated between the bounds that are counted in, so it is exact to a bucket: 2.5, 5, 10 and
            25 ms are the ones around the goal.""",
            (quantile(0.99, START_UP, more=HIT), "p99"), steps((GREEN, None), (ORANGE, 0.005), (RED, 0.025)),
        ),
        stat(
            "Jobs per second", "ops",
            """Results of all kinds, each second, over the pools and workers chosen above. It says how much the other
            figures weigh: a hit rate of 90 % of one job a minute is one job in ten minutes. Zero while the queue is not
            empty is an outage: see Jobs at the broker and Pools that can serve.""",
            (rate(JOBS), "jobs"), steps((GREEN, None)),
        ),
        stat(
            "Failed by us", "percentunit",
            """The share of results that are `error`: prewarm, its engine or its broker were in the way until the last
            retry. The goal is at most 0.1 %; jobs that fail by themselves are not in it. If it isn't zero, read the
            reasons with `prewarm dead ls`, and see Engine errors.""",
            (of_us(), "error"), steps((GREEN, None), (YELLOW, 0.0001), (RED, ERROR_BUDGET)),
        ),
        stat(
            "Workers", "short",
            """Workers that Prometheus can scrape now. A worker that is gone is not missed by anything else: its jobs are
            given out again, and others take them. Compare with how many you run; if there are fewer, see Restarts in the
            picture, and the log of the one that is missing.""",
            (f"sum (up{{{WORKERS}}})", "up"), steps((RED, None), (GREEN, 1)),
        ),
    ]


def burn():
    return lines(
        "Error budget burn", "short",
        """How many times faster than allowed each goal's budget is used up: 1 would use up exactly a month's budget in a
        month, 14.4 all of it in two days. The goals: 99 % hits, 99 % of hits within 5 ms, 99.9 % of results no `error`.
        The alerts PrewarmHitRateBurn, PrewarmStartupBurn and PrewarmErrorsBurn look at the same over longer times, so a
        short peak here wakes nobody. Two at once usually have one cause: no processor time, or an engine in trouble.""",
        [
            (f"(1 - {hit_rate()}) / {1 - HIT_GOAL:.2f}", "hit rate"),
            (f"(1 - {in_time()}) / {1 - HIT_GOAL:.2f}", "start-up"),
            (f"{of_us()} / {ERROR_BUDGET}", "errors"),
        ],
        goal=(14.4, False),
    )


def engine_errors():
    return lines(
        "Engine errors", "ops",
        """Requests to the container engine that failed or had no answer in time, by what was asked. Some are of no
        consequence (removing what is gone already). `create`, `attach` and `start` cost a container each, and open the
        breaker of the pool if they go on; `pull` and `inspect` mean that an image is missing or a registry is away;
        `info`, `list` and `events` together mean that the engine is away. The worker's log has each with its reason.""",
        [(rate("prewarm_engine_errors_total", "instance, op", of=WORKERS), "{{instance}} {{op}}")], links=to_worker(),
    )


def broker():
    reconnects = f"sum by (instance) (increase(prewarm_broker_reconnects_total{{{WORKERS}}}[$__rate_interval]))"
    return lines(
        "Connection to the broker", "short",
        """1 while a worker's two connections to RabbitMQ are up, not blocked, and all exchanges and queues are as needed;
        and how many connections were lost. One worker at 0: its network, or its permissions. All at 0: the broker is
        away, or blocks publishers because its disk or memory is low (`rabbitmqctl list_alarms`). Jobs that run go on, and
        their results are sent when it is back. Many losses without a gap: a load balancer that cuts idle connections.""",
        [(f"prewarm_broker_connected{{{WORKERS}}}", "{{instance}}"), (reconnects, "{{instance}} lost")],
        links=to_worker(),
    )


def replies():
    names = ("unroutable", "refused", "dropped")
    return lines(
        "Replies that did not arrive", "ops",
        """`unroutable`: the reply queue was gone, so the publisher had ended; the result is in the queue
        `prewarm.results`. `refused`: the reply queue took no more, it is probably full and nobody reads it; the result is
        there too. `dropped`: events of jobs in progress (`started`, logs) that could not be delivered for
        `broker.reply_patience`. No job is harmed by any of it: look at the publishers, whose queues these are.""",
        [(rate(f"prewarm_replies_{name}_total", of=WORKERS), name) for name in names],
    )


DASHBOARD = dashboard(
    "prewarm-overview",
    "prewarm: overview",
    """Are jobs served at once, how fast do they start, and what is in the way? Click a curve of a pool or a worker to go
    to its dashboard.""",
    [
        row("", *figures()),
        row(
            "Are users served?", served.hits(), served.hit_start_up(), served.hit_heatmap(), burn(),
            served.miss_start_up(), served.miss_heatmap(),
        ),
        row(
            "Queue and throughput", served.queues(), served.queue_wait(), served.results(), served.running(),
            served.run_time(),
        ),
        row("Pools", served.containers(), served.retired(), served.able()),
        row(
            "Failures", served.badly(), served.again(), engine_errors(), broker(), served.dead_letters(), replies(),
        ),
    ],
    [to_dashboard("prewarm-pool", "Pools"), to_dashboard("prewarm-worker", "Workers")],
    broker=True,
)
