#!/usr/bin/env python3
"""Checks every crate in Cargo.lock against dependencies.toml: licence, source, advisories, yanked; lists duplicates.

    deploy/lib/dependencies.py [--advisory-db FOLDER]

Needs no network but cargo's own. Advisories are compared only where a copy of RustSec's advisory-db is given, by the
option or by PREWARM_ADVISORY_DB; without one, the exceptions that dependencies.toml lists are checked for still being needed.
Python's standard library only.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--advisory-db", type=pathlib.Path, default=os.environ.get("PREWARM_ADVISORY_DB"))
    options = parser.parse_args()
    rules = tomllib.loads((HERE / "dependencies.toml").read_text())
    packages = [p for p in cargo_metadata()["packages"] if p["source"]]

    faults = licence_faults(packages, rules["licences"]["allowed"])
    faults += source_faults(packages, rules["sources"]["allowed"])
    faults += needless_exceptions(packages, rules["advisory"])
    faults += yanked()
    if options.advisory_db:
        faults += advisory_faults(packages, pathlib.Path(options.advisory_db), rules["advisory"])
    report_duplicates(packages)
    for fault in faults:
        print(f"  {fault}", file=sys.stderr)
    compared = "advisories compared" if options.advisory_db else "advisories not compared (PREWARM_ADVISORY_DB is not set)"
    print(f"  {len(packages)} crates, {len(faults)} faults, {compared}")
    return 1 if faults else 0


def cargo_metadata():
    command = ["cargo", "metadata", "--locked", "--quiet", "--all-features", "--format-version", "1"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


# --- Licences: SPDX expressions ---

def licence_faults(packages, allowed):
    return [
        f"{name(p)}: licence {p['license'] or 'not stated'!r} is not among those allowed in dependencies.toml"
        for p in packages
        if not p["license"] or not is_allowed(p["license"], set(allowed))
    ]


def is_allowed(expression, allowed):
    """OR needs one side, AND both. Old crates write '/' for OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def alternatives():
        result = conjunction()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = conjunction() or result
        return result

    def conjunction():
        result = licence()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = licence() and result
        return result

    def licence():
        token = tokens.pop(0)
        if token == "(":
            result = alternatives()
            tokens.pop(0)
            return result
        if tokens and tokens[0] == "WITH":
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allowed

    return alternatives()


# --- Sources, yanked, duplicates ---

def source_faults(packages, allowed):
    return [f"{name(p)}: comes from {p['source']}" for p in packages if p["source"] not in allowed]


def yanked():
    """Packaging is where cargo itself looks for yanked crates in Cargo.lock, and says so."""
    command = ["cargo", "package", "--locked", "--allow-dirty", "--no-verify", "--color", "never"]
    result = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    if result.returncode:
        return ["cargo package failed, so yanked crates are unknown: " + result.stderr.strip().splitlines()[-1]]
    return re.findall(r"package `.*` in Cargo.lock is yanked.*", result.stderr)


def report_duplicates(packages):
    versions = collections.defaultdict(set)
    for package in packages:
        versions[package["name"]].add(package["version"])
    twice = [f"{crate} {' '.join(sorted(v))}" for crate, v in sorted(versions.items()) if len(v) > 1]
    print(f"  {len(twice)} crates in more than one version (all platforms): {', '.join(twice) or 'none'}")


# --- Advisories ---

def needless_exceptions(packages, exceptions):
    present = {p["name"] for p in packages}
    return [
        f"{e['id']}: {e['package']} is no longer in Cargo.lock; remove the exception from dependencies.toml"
        for e in exceptions
        if e["package"] not in present
    ]


def advisory_faults(packages, database, exceptions):
    excepted = {e["id"] for e in exceptions}
    faults = []
    for package in packages:
        for path in sorted((database / "crates" / package["name"]).glob("RUSTSEC-*.md")):
            header = re.search(r"```toml\n(.*?)```", path.read_text(), re.S)[1]
            advisory = tomllib.loads(header)
            about = advisory["advisory"]
            if about["id"] in excepted or "withdrawn" in about:
                continue
            fine = advisory["versions"].get("patched", []) + advisory["versions"].get("unaffected", [])
            if not any(matches(package["version"], requirement) for requirement in fine):
                faults.append(f"{name(package)}: {about['id']} ({about.get('informational', 'vulnerability')})")
    return faults


def matches(version, requirement):
    """Requirements as advisories write them: '>= 1.2, < 2', '^1.2.3', '= 1.2'."""
    return all(compare(numbers(version), part.strip()) for part in requirement.split(","))


def compare(version, part):
    operator, bound = re.match(r"(>=|<=|>|<|=|\^|~)?\s*(.*)", part).groups()
    wanted = numbers(bound)
    if operator in ("^", None):
        leading = next((i for i, n in enumerate(wanted[:3]) if n), 2) + 1
        return version >= wanted and version[:leading] == wanted[:leading]
    if operator == "~":
        return version >= wanted and version[:2] == wanted[:2]
    if operator == "=":
        return version == wanted
    return {">=": version >= wanted, "<=": version <= wanted, ">": version > wanted, "<": version < wanted}[operator]


def numbers(version):
    """A pre-release sorts before its release: the fourth number is 0 for one, 1 without."""
    core, _, pre = version.split("+")[0].partition("-")
    parts = [int(n) for n in core.split(".")]
    return (*parts, *[0] * (3 - len(parts)), 0 if pre else 1)


def name(package):
    return f"{package['name']} {package['version']}"


if __name__ == "__main__":
    sys.exit(main())
