#!/usr/bin/env python3
"""Looks at deploy/kubernetes as a whole: what no schema tells.

    resources.py TYPES.ts    writes the custom resources as TypeScript, whose compiler compares them with their types

Each kustomization names every file beside it and nothing else, each reference between resources leads somewhere, and the times
in which a worker drains agree. Exit code 1, and a line for each fault.
"""

import pathlib
import re
import sys
import tomllib

import json
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
TYPES = {
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
    "TriggerAuthentication": "@kubernetes-models/keda/keda.sh/v1alpha1/TriggerAuthentication",
    "PodMonitor": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
}
# Beyond worker.drain_timeout: results, containers, the engine.
MARGIN = 300

faults = []


def main():
    resources = [r for folder in sorted(FOLDER.iterdir()) for r in kustomization(folder)]
    configuration = tomllib.loads((FOLDER / "base" / "prewarm.toml").read_text())
    drain = seconds(configuration["worker"]["drain_timeout"])
    ours(drain, resources, configuration)
    compose(tomllib.loads((ROOT / "deploy/compose/prewarm.toml").read_text()))
    write_types(resources, pathlib.Path(sys.argv[1]))
    for fault in faults:
        print(f"  {fault}", file=sys.stderr)
    return 1 if faults else 0


def kustomization(folder):
    """The resources that a folder's kustomization names itself."""
    file = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "namespace", "labels", "resources", "configMapGenerator", "images"}
    if unknown := set(file) - known:
        faults.append(f"{folder.name}: kustomization.yaml has {unknown}, which this check doesn't know")
    named = {f for f in file["resources"] if not f.startswith("../")}
    named |= {f for made in file.get("configMapGenerator", []) for f in made["files"]}
    there = {f.name for f in folder.iterdir()} - {"kustomization.yaml"}
    for name in named ^ there:
        faults.append(f"{folder.name}: {name} is {'not there' if name in named else 'not in kustomization.yaml'}")
    for other in (f for f in file["resources"] if f.startswith("../")):
        if not (folder / other / "kustomization.yaml").exists():
            faults.append(f"{folder.name}: {other} is no kustomization")
    # An image whose place is given is one that the folder's resources have.
    texts = [(folder / name).read_text() for name in named & there]
    for image in file.get("images", []):
        if not any(f"image: {image['name']}\n" in text for text in texts):
            faults.append(f"{folder.name}: no resource has the image {image['name']}, whose place kustomization.yaml gives")
    for name in sorted(named & there):
        if name.endswith(".yaml"):
            yield from yaml.safe_load_all((folder / name).read_text())


def ours(drain, resources, configuration):
    workers = [r for r in resources if r["kind"] in ("Deployment", "DaemonSet")]
    labels = [w["spec"]["template"]["metadata"]["labels"] for w in workers]
    for worker in workers:
        where, spec = worker["kind"], worker["spec"]["template"]["spec"]
        if spec["terminationGracePeriodSeconds"] < drain + MARGIN:
            faults.append(f"{where}: terminationGracePeriodSeconds is less than drain_timeout and {MARGIN} s")
        if worker["spec"]["selector"]["matchLabels"].items() - worker["spec"]["template"]["metadata"]["labels"].items():
            faults.append(f"{where}: the selector doesn't select its own pods")
        volumes = {v["name"] for v in spec["volumes"]}
        for container in spec["containers"] + spec.get("initContainers", []):
            for mount in container["volumeMounts"]:
                if mount["name"] not in volumes:
                    faults.append(f"{where}: no volume {mount['name']}")
            ports = {p["name"] for p in container.get("ports", [])}
            for probe in (v for k, v in container.items() if k.endswith("Probe") and "httpGet" in v):
                if probe["httpGet"]["port"] not in ports:
                    faults.append(f"{where}: a probe asks port {probe['httpGet']['port']}, which isn't named")
        images = [v for v in spec["volumes"] if v.get("configMap", {"name": "prewarm"})["name"] != "prewarm"]
        if images:
            faults.append(f"{where}: a config map that isn't generated")
    for one in resources:
        selector = one["spec"].get("podSelector", one["spec"].get("selector")) if one["kind"] in (
            "NetworkPolicy", "PodDisruptionBudget", "PodMonitor") else None
        if selector and not any(selector["matchLabels"].items() <= these.items() for these in labels):
            faults.append(f"{one['kind']}: selects no pods")
        if one["kind"] == "ScaledObject":
            scaled(one, workers, configuration)


def scaled(one, workers, configuration):
    if one["spec"]["scaleTargetRef"]["name"] not in [w["metadata"]["name"] for w in workers]:
        faults.append("ScaledObject: scales nothing that is there")
    prefix = configuration.get("broker", {}).get("prefix", "prewarm")
    queues = {f"{prefix}.jobs.{pool}": settings for pool, settings in configuration["pool"].items()}
    for trigger in (t["metadata"] for t in one["spec"]["triggers"]):
        pool = queues.pop(trigger["queueName"], None)
        if pool is None:
            faults.append(f"ScaledObject: no pool has the queue {trigger['queueName']}, or another trigger has")
        elif int(trigger["value"]) != pool["concurrency"]:
            faults.append(f"ScaledObject: {trigger['queueName']} has another value than its pool's concurrency")
        if trigger["excludeUnacknowledged"] != "false":
            faults.append("ScaledObject: running jobs don't count")
    for queue in queues:
        faults.append(f"ScaledObject: nothing scales by {queue}")


def compose(configuration):
    file = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    drain = seconds(configuration["worker"]["drain_timeout"])
    for name in ("worker-1", "worker-2"):
        if seconds(file["services"][name]["stop_grace_period"]) <= drain:
            faults.append(f"compose.yaml: {name} has no more time than drain_timeout")
    for service, settings in file["services"].items():
        for volume in settings.get("volumes", []):
            source = volume.split(":")[0]
            # Prometheus's and Grafana's files have checks of their own.
            if source.startswith(".") and not (ROOT / "deploy" / source).exists():
                faults.append(f"compose.yaml: {service}: {source} is not there")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m|h)", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def write_types(resources, path):
    """A literal has to have the fields of its type and no others; so has everything within it."""
    lines = []
    for at, one in enumerate(r for r in resources if r["kind"] in TYPES):
        kind = one["kind"]
        lines.append(f'import {{ I{kind} as T{at} }} from "{TYPES[kind]}";')
        lines.append(f"export const r{at}: T{at} = {json.dumps(one, indent=2)};")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
