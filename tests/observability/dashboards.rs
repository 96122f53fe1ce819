//! The dashboards as Grafana imports them: by the rules of grafana's dashboard-linter, and ours.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::promql::{Selector, selectors};
use crate::support::docker::{PATIENCE, run};
use crate::{RABBITMQ, exposition, path, read};

pub const NAMES: [&str; 3] = ["overview", "pool", "worker"];

pub fn load(name: &str) -> Value {
    serde_json::from_str(&read(&format!("dashboards/{name}.json"))).unwrap()
}

pub fn list(of: &Value) -> &[Value] {
    of.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn text(of: &Value) -> &str {
    of.as_str().unwrap_or_else(|| panic!("no text: {of}"))
}

/// Its panels, but for the rows' titles.
pub fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row")
}

pub fn uids() -> BTreeSet<String> {
    NAMES.iter().map(|name| text(&load(name)["uid"]).to_owned()).collect()
}

/// Whether an address leads to one of these dashboards.
pub fn leads_to_one(url: &str, uids: &BTreeSet<String>) -> bool {
    let uid = url.split_once("/d/").map(|(_, rest)| rest.split(['?', '&']).next().unwrap());
    uid.is_some_and(|uid| uids.contains(uid))
}

#[test]
fn what_is_committed_is_what_the_source_makes() {
    let mut check = Command::new("python3");
    let done = run(check.arg(path("dashboards/make.py")).arg("--check"), None, PATIENCE);
    assert!(done.code == Some(0), "{} {}", done.stdout, done.stderr);
}

#[test]
fn each_dashboard_is_as_a_whole_in_order() {
    let uids = uids();
    assert_eq!(uids.len(), NAMES.len());
    for name in NAMES {
        let dashboard = load(name);
        assert_eq!(text(&dashboard["uid"]), format!("prewarm-{name}"));
        assert!((39..=42).contains(&dashboard["schemaVersion"].as_u64().unwrap()));
        assert_eq!(dashboard["editable"], false);
        let ids: Vec<u64> = list(&dashboard["panels"]).iter().map(|p| p["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{name}: ids {ids:?}");
        let titles: Vec<&str> = panels(&dashboard).map(|panel| text(&panel["title"])).collect();
        assert_eq!(titles.iter().collect::<BTreeSet<_>>().len(), titles.len(), "{name}: {titles:?}");
        let links = list(&dashboard["links"]);
        assert_eq!(links.len(), 2, "{name} leads to the other two");
        assert!(links.iter().all(|link| leads_to_one(text(&link["url"]), &uids)), "{links:?}");
        let annotations: Vec<&str> =
            list(&dashboard["annotations"]["list"]).iter().map(|a| text(&a["name"])).collect();
        assert_eq!(annotations, ["Restarts", "Alerts"]);
        places_are_apart(name, &dashboard);
    }
}

/// No panel is over another one, or beyond the right edge.
fn places_are_apart(name: &str, dashboard: &Value) {
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard["panels"]) {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{name}: {} is too wide", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{name}: {} is over another one", panel["title"]);
        }
    }
}

#[test]
fn variables_choose_what_is_shown() {
    for name in NAMES {
        let dashboard = load(name);
        let variables = list(&dashboard["templating"]["list"]);
        let first = &variables[0];
        assert_eq!((&first["type"], &first["label"]), (&"datasource".into(), &"Data source".into()));
        let whole = dashboard.to_string();
        for variable in variables {
            let own = text(&variable["name"]);
            let used = [format!("${own}"), format!("${{{own}")].iter().any(|used| whole.contains(used));
            assert!(used, "{name}: ${own} is used by nothing");
            if variable["type"] == "query" {
                let (multi, all) = (&variable["multi"], &variable["allValue"]);
                assert_eq!((multi, all), (&true.into(), &".+".into()), "{name}: {own}");
                assert_eq!(variable["datasource"]["uid"], "${datasource}");
            }
        }
        let names: Vec<&str> = variables.iter().map(|variable| text(&variable["name"])).collect();
        assert!(names.starts_with(&["datasource", "job", "instance", "pool"]), "{names:?}");
        for (_, expr) in expressions(&dashboard) {
            for used in expr.split('$').skip(1) {
                let end = used.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(used.len());
                let known = names.contains(&&used[..end]) || used.starts_with("__");
                assert!(known, "{name}: ${} isn't defined: {expr}", &used[..end]);
            }
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_and_what_to_do() {
    let uids = uids();
    for name in NAMES {
        let dashboard = load(name);
        for panel in panels(&dashboard) {
            let about = format!("{name}: {}", panel["title"]);
            assert!(text(&panel["title"]).len() >= 2, "{about}");
            let description = text(&panel["description"]).chars().count();
            assert!((200..=800).contains(&description), "{about}: a description of {description} characters");
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(!text(&defaults["unit"]).is_empty(), "{about}: no unit");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{about}");
            let targets = list(&panel["targets"]);
            assert!(!targets.is_empty(), "{about}: nothing is asked");
            for target in targets {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{about}");
                assert!(!text(&target["legendFormat"]).is_empty(), "{about}: no legend");
            }
            for link in list(&defaults["links"]) {
                assert!(leads_to_one(text(&link["url"]), &uids), "{about}: {link}");
            }
        }
    }
}

/// Where each expression stands, and the expression.
pub fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let of_panel = |panel: &Value| -> Vec<(String, String)> {
        let targets = list(&panel["targets"]).iter();
        targets.map(|t| (text(&panel["title"]).to_owned(), text(&t["expr"]).to_owned())).collect()
    };
    let annotations = list(&dashboard["annotations"]["list"]).iter();
    let of_annotations = annotations.map(|a| (text(&a["name"]).to_owned(), text(&a["expr"]).to_owned()));
    panels(dashboard).flat_map(of_panel).chain(of_annotations).collect()
}

#[test]
fn every_expression_is_about_what_was_chosen() {
    for name in NAMES {
        for (title, expr) in expressions(&load(name)) {
            let found = selectors(&expr);
            assert!(!found.is_empty(), "{name}: {title}: no series in {expr}");
            for selector in found {
                check(&selector, &format!("{name}: {title}: {selector:?}"));
            }
        }
    }
}

fn check(selector: &Selector, about: &str) {
    let Selector { name, matchers, range, inside } = selector;
    let has = |matcher: &str| matchers.contains(matcher);
    let (counts, of_the_broker) = match exposition::family(name) {
        Some((_, counts)) => (counts, false),
        None if name == "up" => (false, false),
        // It has the labels of its rule, whatever these are.
        None if name == "ALERTS" => return,
        None => (false, RABBITMQ.contains(&name.as_str())),
    };
    if of_the_broker {
        assert!(has("job=~\"$broker\"") && has("instance=~\"$node\"") && has("queue="), "{about}");
    } else {
        let known = name == "up" || exposition::family(name).is_some();
        assert!(known, "there is no such metric: {about}");
        assert!(has("job=~\"$job\"") && has("instance=~\"$instance\""), "{about}");
    }
    if counts {
        assert!(matches!(inside.as_deref(), Some("rate" | "increase")), "a counter as it is: {about}");
        assert_eq!(range.as_deref(), Some("$__rate_interval"), "{about}");
    } else {
        assert_eq!(range, &None, "no counter: {about}");
    }
}
