"""Grafana's classic dashboard JSON, as far as prewarm's dashboards need it, and the PromQL that they repeat."""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# Matchers: every expression has those of the workers, or those of the broker's nodes.
WORKERS = 'job=~"$job", instance=~"$instance"'
POOLS = WORKERS + ', pool=~"$pool"'
BROKER = 'job=~"$broker", instance=~"$node"'

GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "#8e8e8e"


# --- PromQL ---


def clause(by):
    return f" by ({by})" if by else ""


def rate(name, by="", more="", of=POOLS):
    """The rate of a counter, summed."""
    return f"sum{clause(by)} (rate({name}{{{of}{more}}}[$__rate_interval]))"


def share(part, whole):
    """A ratio that is absent, rather than NaN, where there is no traffic."""
    return f"{part} / ({whole} > 0)"


def quantile(q, name, by="", more="", of=POOLS):
    """A quantile of a histogram."""
    buckets = rate(f"{name}_bucket", f"le, {by}" if by else "le", more, of)
    return f"histogram_quantile({q}, {buckets})"


def quantiles(name, more="", of=POOLS, qs=(0.5, 0.95, 0.99)):
    return [(quantile(q, name, more=more, of=of), f"p{q * 100:g}") for q in qs]


def buckets(name, more="", of=POOLS):
    """What a heatmap draws."""
    return f"sum by (le) (increase({name}_bucket{{{of}{more}}}[$__rate_interval]))"


def hit_rate(by=""):
    leases = "prewarm_pool_leases_total"
    return share(rate(leases, by, ', result="hit"'), rate(leases, by))


# --- Panels ---


def steps(*values):
    """Colours from below; the first has no bound."""
    return [{"color": color, "value": value} for color, value in values]


def panel(kind, title, unit, description, targets, width=12, height=8, **more):
    """A panel that has everything but its place. `targets` are pairs of an expression and a legend."""
    made = {
        "type": kind,
        "title": title,
        "description": " ".join(description.split()),
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend, "range": True}
            for n, (expr, legend) in enumerate(targets)
        ],
        "fieldConfig": {"defaults": {"unit": unit, "links": more.get("links", [])}, "overrides": []},
        "options": {},
    }
    if "min" in more:
        made["fieldConfig"]["defaults"]["min"] = more["min"]
    if "max" in more:
        made["fieldConfig"]["defaults"]["max"] = more["max"]
    return made


def lines(title, unit, description, targets, goal=None, stacked=False, colors=None, **more):
    """Curves over time; `goal` is a pair of a value and whether above it is good; `colors` by legend."""
    made = panel("timeseries", title, unit, description, targets, min=more.pop("min", 0), **more)
    defaults = made["fieldConfig"]["defaults"]
    defaults["custom"] = {
        "lineWidth": 1,
        "fillOpacity": 25 if stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if goal else "off"},
    }
    if goal:
        value, above_is_good = goal
        good, bad = ("transparent", RED)
        defaults["color"] = {"mode": "palette-classic"}
        first, then = (bad, good) if above_is_good else (good, bad)
        defaults["thresholds"] = {"mode": "absolute", "steps": steps((first, None), (then, value))}
    for legend, color in (colors or {}).items():
        made["fieldConfig"]["overrides"].append(
            {
                "matcher": {"id": "byName", "options": legend},
                "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
            }
        )
    made["options"] = {
        "legend": {"displayMode": "table", "placement": "right", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def apart(made, *legends):
    """These curves are lines over a stack, not part of it."""
    for legend in legends:
        made["fieldConfig"]["overrides"].append(
            {
                "matcher": {"id": "byName", "options": legend},
                "properties": [
                    {"id": "custom.stacking", "value": {"mode": "none", "group": "B"}},
                    {"id": "custom.fillOpacity", "value": 0},
                    {"id": "custom.lineWidth", "value": 2},
                    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 4]}},
                ],
            }
        )
    return made


def stat(title, unit, description, target, colors, **more):
    """One figure, as it is now."""
    made = panel("stat", title, unit, description, [target], width=4, height=4, **more)
    defaults = made["fieldConfig"]["defaults"]
    defaults["thresholds"] = {"mode": "absolute", "steps": colors}
    defaults["color"] = {"mode": "thresholds"}
    made["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "auto",
        "justifyMode": "auto",
    }
    return made


def heatmap(title, description, name, more="", of=POOLS, **rest):
    """A histogram of seconds over time."""
    made = panel("heatmap", title, "s", description, [(buckets(name, more, of), "{{le}}")], **rest)
    made["targets"][0]["format"] = "heatmap"
    made["options"] = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "steps": 64, "fill": "dark-orange"},
        "yAxis": {"unit": "s", "axisPlacement": "left", "reverse": False},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"show": True, "yHistogram": False},
        "legend": {"show": True},
        "filterValues": {"le": 1e-9},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "showValue": "never",
    }
    return made


def row(title, *panels):
    return title, panels


# --- Links ---

CARRIED = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"


def to_pool():
    """From a curve of a pool to that pool."""
    url = f"/d/prewarm-pool?var-pool=${{__field.labels.pool}}&{CARRIED}"
    return [{"title": "This pool: ${__field.labels.pool}", "url": url}]


def to_worker():
    """From a curve of a worker to that worker."""
    url = f"/d/prewarm-worker?var-instance=${{__field.labels.instance}}&{CARRIED}"
    return [{"title": "This worker: ${__field.labels.instance}", "url": url}]


def to_dashboard(uid, title):
    return {
        "type": "link",
        "title": title,
        "url": f"/d/{uid}",
        "icon": "dashboard",
        "tooltip": f"{title}, with the same time and variables",
        "keepTime": True,
        "includeVars": True,
        "targetBlank": False,
        "asDropdown": False,
        "tags": [],
    }


# --- The dashboard ---


def choice(name, label, query, many=True):
    """A variable whose values come from a label."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
    }


def variables(broker):
    chosen = [
        {
            "type": "datasource",
            "name": "datasource",
            "label": "Data source",
            "query": "prometheus",
            "current": {},
            "options": [],
            "refresh": 1,
            "regex": "",
            "multi": False,
            "includeAll": False,
            "hide": 0,
        },
        choice("job", "Job", "label_values(prewarm_build_info, job)"),
        choice("instance", "Worker", 'label_values(prewarm_build_info{job=~"$job"}, instance)'),
        choice("pool", "Pool", f"label_values(prewarm_pool_target{{{WORKERS}}}, pool)"),
    ]
    if broker:
        depth = "rabbitmq_detailed_queue_messages_ready"
        chosen += [
            choice("broker", "Broker's job", f"label_values({depth}, job)"),
            choice("node", "Broker's node", f'label_values({depth}{{job=~"$broker"}}, instance)'),
            {
                "type": "textbox",
                "name": "prefix",
                "label": "broker.prefix",
                "query": "prewarm",
                "current": {"text": "prewarm", "value": "prewarm"},
                "options": [{"text": "prewarm", "value": "prewarm", "selected": True}],
                "hide": 0,
            },
        ]
    return chosen


ANNOTATIONS = [
    {
        "name": "Restarts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": BLUE,
        # The value is the time: a start that is in the picture is drawn when it was, whoever scraped it when.
        "expr": f"(process_start_time_seconds{{{WORKERS}}} * 1000) > $__from",
        "useValueForTime": "on",
        "titleFormat": "Worker started",
        "textFormat": "{{instance}}",
        "tagKeys": "job",
        "step": "60s",
    },
    {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": RED,
        "expr": 'ALERTS{alertname=~"Prewarm.+", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{job}} {{instance}} {{pool}} {{queue}}",
        "tagKeys": "severity",
        "step": "60s",
    },
]


def placed(rows):
    """All panels with ids and places: rows one below the other, panels from left to right."""
    panels, y = [], 0
    for title, members in rows:
        if title:
            place = {"x": 0, "y": y, "w": 24, "h": 1}
            panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []})
            y += 1
        x, height = 0, 0
        for member in members:
            place = member["gridPos"]
            if x + place["w"] > 24:
                x, y, height = 0, y + height, 0
            panels.append({**member, "gridPos": {"x": x, "y": y, **place}})
            x, height = x + place["w"], max(height, place["h"])
        y += height
    return [{"id": n, **made} for n, made in enumerate(panels, 1)]


def dashboard(uid, title, description, rows, links, broker):
    return {
        "uid": uid,
        "title": title,
        "description": " ".join(description.split()),
        "tags": ["prewarm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": links,
        "annotations": {"list": ANNOTATIONS},
        "templating": {"list": variables(broker)},
        "panels": placed(rows),
    }
