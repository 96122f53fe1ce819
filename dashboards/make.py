#!/usr/bin/env python3
"""Writes the dashboards, and the list of their panels in README.md, from `source/`: one source, so that they agree.

    dashboards/make.py           writes them
    dashboards/make.py --check   says what differs from what is committed, and fails if something does
"""

import json
import pathlib
import re
import sys

sys.dont_write_bytecode = True

from source import overview, pool, worker  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
DASHBOARDS = {"overview": overview.DASHBOARD, "pool": pool.DASHBOARD, "worker": worker.DASHBOARD}
BEGIN, END = "<!-- panels: made by make.py -->", "<!-- end of panels -->"


def listed(dashboard, told):
    """A dashboard's panels as Markdown: the same words as Grafana shows, but for those that were told before."""
    out = [f"### {dashboard['title']}", "", dashboard["description"], ""]
    for panel in dashboard["panels"]:
        title, description = panel["title"], panel.get("description")
        if panel["type"] == "row":
            out += ["", f"**{title}**", ""]
        elif description in told:
            out.append(f"- *{title}*: as above.")
        else:
            told.add(description)
            out.append(f"- *{title}.* {description}")
    return re.sub("\n{3,}", "\n\n", "\n".join(out))


def files():
    """Every file that is made, with its text."""
    for name, dashboard in DASHBOARDS.items():
        yield HERE / f"{name}.json", json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    told = set()
    panels = "\n\n".join(listed(dashboard, told) for dashboard in DASHBOARDS.values())
    yield readme, f"{before}{BEGIN}\n\n{panels}\n\n{END}{after}"


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    differ = [(path, text) for path, text in files() if not path.exists() or path.read_text() != text]
    for path, text in differ:
        if check:
            print(f"{path.name} is not what dashboards/make.py makes: run it, and commit what it wrote")
        else:
            path.write_text(text)
            print(f"wrote {path.name}")
    sys.exit(1 if check and differ else 0)


if __name__ == "__main__":
    main()
