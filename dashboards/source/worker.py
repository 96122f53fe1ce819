"""One worker, or some beside each other: is it up, what does its engine do, and what does its broker do?"""

from .grafana import (
    POOLS, WORKERS, dashboard, heatmap, hit_rate, lines, quantile, quantiles, rate, row, to_dashboard, to_pool,
)
from .overview import broker, engine_errors, replies
from .served import HIT, HIT_GOAL, START_UP, START_UP_GOAL

ENGINE = "prewarm_engine_request_seconds"


def up():
    return lines(
        "Up", "bool_yes_no",
        """Whether Prometheus could scrape the worker. A gap is a worker that was not there at all, or not in Prometheus's
        list of targets. After an end that wasn't planned its containers are gone within a second and its jobs are given
        out again by the broker, so nothing has to be cleaned up: find out why it ended (`journalctl -u prewarm`,
        `kubectl describe pod`), and see whether its restart is among the annotations.""",
        [(f"up{{{WORKERS}}}", "{{instance}}")], max=1,
    )


def age():
    return lines(
        "Time since start, and version", "s",
        """How long each worker has run, and which version. A saw is a worker that restarts again and again: its log says
        why. Two versions at once are normal while a rollout goes on; since workers refuse fields of a job that they don't
        know, upgrade all of them before publishers use new ones. Every restart empties the worker's pools, so expect some
        misses right after it.""",
        [
            (
                f"time() - process_start_time_seconds{{{WORKERS}}}"
                f" + on (job, instance) group_left (version) (0 * prewarm_build_info{{{WORKERS}}})",
                "{{instance}} {{version}}",
            ),
        ],
    )


def cpu():
    return lines(
        "Processor time", "percentunit",
        """What the worker itself uses, without its engine and its jobs; 100 % is one core. It is about half a millisecond for
        each job, plus what output costs. If it is near one core for long, the rate of jobs or their output is near what
        one worker can carry: add one. High without jobs is worth a bug report. The engine's and the jobs' own use is not
        here: watch the host.""",
        [(f"rate(process_cpu_seconds_total{{{WORKERS}}}[$__rate_interval])", "{{instance}}")],
    )


def memory():
    return lines(
        "Memory", "bytes",
        """Resident and virtual memory of the worker, without its engine and its jobs. It does not grow with what jobs print,
        nor with how many messages wait, so some ten MiB are normal, and up to 64 MiB under load. A steady rise over days is
        worth a bug report with this picture. What idle containers take is in their own control groups: about 200 KiB each
        for init, plus what the engine needs for a container.""",
        [
            (f"process_resident_memory_bytes{{{WORKERS}}}", "{{instance}} resident"),
            (f"process_virtual_memory_bytes{{{WORKERS}}}", "{{instance}} virtual"),
        ],
    )


def descriptors():
    return lines(
        "Open files and threads", "short",
        """Open files of the worker against the most that it may have, and its threads. Each container holds one connection
        to the engine (with isolation `namespace` one to its init besides), each connection to the broker one more, each of `status` and `/metrics` one for a moment. If open
        comes near the limit, raise it (`LimitNOFILE` in the unit): otherwise containers can't be made, with 'too many open
        files' in the log. Threads are a few for each core, and don't grow.""",
        [
            (f"process_open_fds{{{WORKERS}}}", "{{instance}} open"),
            (f"process_max_fds{{{WORKERS}}}", "{{instance}} limit"),
            (f"process_threads{{{WORKERS}}}", "{{instance}} threads"),
        ],
    )


def hits():
    return lines(
        "Hit rate by worker", "percentunit",
        """The share of leases that found an idle container at once, for each worker. Workers of the same pools should be
        alike. One that is lower than the others has a slower engine, less room (`engine.containers`, `engine.memory`) or a
        smaller `idle.max`, or has just started. The dashed line is the goal of 99 %. What helps is in the description of
        Hit rate by pool.""",
        [(hit_rate("instance"), "{{instance}}")], goal=(HIT_GOAL, True), max=1,
    )


def start_up():
    return lines(
        "Start-up of hits by worker, p99", "s",
        """From delivery to executing entrypoint, of all but the slowest hundredth of hits, for each worker. The dashed line is
        the goal of 5 ms. One worker above the others: its host has too few cores for what runs on it, or its disk is slow
        to read entrypoints from. Give it a lower `concurrency`, so that others take its share, or a better host. All
        together: look at the overview, by pool.""",
        [(quantile(0.99, START_UP, "instance", HIT), "{{instance}}")], goal=(START_UP_GOAL, False),
    )


def running():
    return lines(
        "Jobs in hand by worker", "short",
        """Jobs that each worker has taken and not yet ended, by pool. Workers compete for the same queues, so over some time
        they should have like numbers; one that has none while others are full takes no jobs: it drains, its breaker is
        open, or it isn't connected to the broker (`/readyz` says which). One that is always full and slow draws jobs that
        others could do sooner: lower its `concurrency`.""",
        [(f"sum by (instance, pool) (prewarm_jobs_running{{{POOLS}}})", "{{instance}} {{pool}}")], links=to_pool(),
    )


def containers():
    return lines(
        "Containers by worker", "short",
        """How many containers each worker has, in all states, which is what counts against `engine.containers`, and how many
        of them are idle. At the budget, pools take room from each other (`budget` among the reasons in Containers given
        up). Far fewer than on other workers: it drains (`prewarm_draining` is 1), or its engine can't make any, see Engine errors. Removing that never ends: the
        engine hangs.""",
        [
            (f"sum by (instance) (prewarm_pool_containers{{{POOLS}}})", "{{instance}} all"),
            (f'sum by (instance) (prewarm_pool_containers{{{POOLS}, state="idle"}})', "{{instance}} idle"),
        ],
    )


def requests():
    return lines(
        "Engine requests", "ops",
        """What is asked of the container engine each second. A container takes one `create`, `attach`, `start` and `remove`;
        nothing is asked between a job's delivery and its start on a hit. `list`, `info` and `events` are upkeep, a few in a
        minute. If this is flat while pools are below target, the engine is at its limit, and what helps is another host, or
        isolation `namespace`.""",
        [(rate(f"{ENGINE}_count", "op", of=WORKERS), "{{op}}")], stacked=True,
    )


def latency():
    return lines(
        "Duration of engine requests, p95", "s",
        """How long the engine takes to answer, by what is asked. `create` and `start` make up a container's warm-up; `remove`
        comes after the job and delays nobody but holds room. Some hundred milliseconds are normal for these with Docker. A
        rise of all is a busy host; of `start` alone the network set-up; of `remove` and `create` together the storage
        driver or the disk. `pull` and `install_init` are rare, and may take long.""",
        [(quantile(0.95, ENGINE, "op", of=WORKERS), "{{op}}")],
    )


def create_heatmap():
    return heatmap(
        "Create and start, all requests",
        """How long each `create` and `start` took, which is what decides how fast the pools refill. Two bands are the two
        kinds. What wanders upwards as the rate grows is an engine at its limit; lower `engine.creations` until the band is
        narrow again, since more at once are not more in all. Points at the engine's timeout (`engine.timeout`) are
        requests that got no answer, and count as Engine errors too.""",
        ENGINE, ', op=~"create|start"', WORKERS,
    )


def confirm():
    return lines(
        "Publish to confirm", "s",
        """From publishing a result to the broker's confirm that it is safe. Each job waits for it once before it is
        acknowledged, after its container was given back, so it costs seats, not containers. Some milliseconds are normal
        with quorum queues on good disks. Hundreds: the broker's disk is slow, a node is away, or it is short of memory
        (`rabbitmqctl list_alarms`). Each seat waits, so raise `concurrency` only after mending that.""",
        quantiles("prewarm_publish_confirm_seconds", of=WORKERS),
    )


def confirm_heatmap():
    return heatmap(
        "Publish to confirm, all messages",
        """How long each confirm took. The broker writes results to disk before it confirms, so this is its disk as much as
        its load. One band that stays is healthy. Regular lines far above it are the broker's own writing of segments;
        everything above at once is a node that left or came back, and all queues that choose a leader. Compare with the
        broker's own dashboard before changing anything here.""",
        "prewarm_publish_confirm_seconds", of=WORKERS,
    )


DASHBOARD = dashboard(
    "prewarm-worker",
    "prewarm: workers",
    """One worker or some beside each other: the process itself, the container engine that it uses, and its connection to the
    broker.""",
    [
        row("Is it up?", up(), age(), broker(), running()),
        row("How does it serve?", hits(), start_up(), containers(), replies()),
        row("Engine", requests(), latency(), create_heatmap(), engine_errors()),
        row("Broker", confirm(), confirm_heatmap()),
        row("Process", cpu(), memory(), descriptors()),
    ],
    [to_dashboard("prewarm-overview", "Overview"), to_dashboard("prewarm-pool", "Pools")],
    broker=False,
)
