//! The rules, their runbook and their tests, read as text: promtool itself is asked by `deploy/test.sh`, and a Prometheus evaluates them
//! in [`crate::live`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::dashboards::{leads_to_one, uids};
use crate::promql::selectors;
use crate::{RABBITMQ, exposition, path, read};

/// An alert or a recording rule, as its lines are.
pub struct Rule {
    pub name: String,
    alerts: bool,
    lines: Vec<String>,
}

impl Rule {
    /// The value of a key: on its line, or indented below it.
    fn get(&self, key: &str) -> Option<String> {
        let begins = format!("{key}:");
        let at = self.lines.iter().position(|line| line.trim_start().starts_with(&begins))?;
        let indent = |line: &str| line.len() - line.trim_start().len();
        let own = indent(&self.lines[at]);
        let value = self.lines[at].trim_start()[begins.len()..].trim();
        if !["|", ">-"].contains(&value) {
            return Some(value.trim_matches('\'').to_owned());
        }
        let below = self.lines[at + 1..].iter().take_while(|line| indent(line) > own);
        Some(below.map(|line| line.trim()).collect::<Vec<_>>().join("\n"))
    }

    pub fn expr(&self) -> String {
        self.get("expr").unwrap_or_else(|| panic!("{} has no expr", self.name))
    }
}

fn texts(folder: &str) -> Vec<String> {
    let files = fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "yml")).collect();
    files.sort();
    files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// All rules of all files.
pub fn all() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for text in texts("deploy/prometheus/rules") {
        for line in text.lines() {
            if let Some((kind, name)) = line.strip_prefix("      - ").and_then(|rest| rest.split_once(": ")) {
                rules.push(Rule { name: name.to_owned(), alerts: kind == "alert", lines: Vec::new() });
            } else if line.starts_with("        ") {
                rules.last_mut().expect("a rule has begun").lines.push(line.to_owned());
            }
        }
    }
    assert!(rules.iter().any(|rule| rule.alerts) && rules.iter().any(|rule| !rule.alerts));
    rules
}

pub fn recorded() -> Vec<String> {
    all().into_iter().filter(|rule| !rule.alerts).map(|rule| rule.name).collect()
}

fn alerts() -> Vec<Rule> {
    all().into_iter().filter(|rule| rule.alerts).collect()
}

#[test]
fn every_series_that_a_rule_names_exists() {
    let recorded: BTreeSet<String> = recorded().into_iter().collect();
    let mut used = BTreeSet::new();
    for rule in all() {
        for selector in selectors(&rule.expr()) {
            let about = format!("{}: {selector:?}", rule.name);
            let name = &selector.name;
            if let Some((_, true)) = exposition::family(name) {
                assert!(
                    matches!(selector.inside.as_deref(), Some("rate" | "increase")),
                    "a counter as it is: {about}"
                );
            }
            let known = recorded.contains(name)
                || exposition::family(name).is_some()
                || RABBITMQ.contains(&name.as_str())
                || name == "up";
            assert!(known, "there is no such series: {about}");
            used.insert(name.clone());
        }
    }
    assert!(recorded.is_subset(&used), "recorded for nothing: {:?}", recorded.difference(&used));
}

#[test]
fn names_and_words_of_rules_are_in_order() {
    let uids = uids();
    let mut names = BTreeSet::new();
    for rule in all() {
        assert!(names.insert(rule.name.clone()), "{} is there twice", rule.name);
        if !rule.alerts {
            assert_eq!(rule.name.matches(':').count(), 2, "level:metric:op: {}", rule.name);
            continue;
        }
        let get = |key: &str| rule.get(key).unwrap_or_else(|| panic!("{} has no {key}", rule.name));
        assert!(rule.name.starts_with("Prewarm") && rule.name.chars().all(char::is_alphanumeric));
        assert!(["critical", "warning", "info"].contains(&get("severity").as_str()), "{}", rule.name);
        assert!(
            !get("summary").contains("{{"),
            "{}: a summary is fixed, alerts are grouped by it",
            rule.name
        );
        assert!(get("description").len() > get("summary").len(), "{}", rule.name);
        let runbook = format!("/dashboards/README.md#{}", rule.name.to_lowercase());
        assert_eq!(get("runbook_url"), format!("{{{{ $externalLabels.prewarm_docs }}}}{runbook}"));
        let dashboard = get("dashboard_url");
        assert!(dashboard.starts_with("{{ $externalLabels.prewarm_grafana }}/d/"), "{dashboard}");
        assert!(leads_to_one(&dashboard, &uids), "{}: {dashboard}", rule.name);
    }
}

#[test]
fn every_alert_has_a_runbook() {
    let page = read("dashboards/README.md");
    let mut sections = BTreeMap::new();
    for part in page.split("\n### ").skip(1) {
        let (title, text) = part.split_once('\n').unwrap();
        assert!(sections.insert(title, text.len()).is_none(), "{title} is there twice");
    }
    for alert in alerts() {
        let length = sections.remove(alert.name.as_str());
        assert!(length.is_some_and(|length| length > 150), "no runbook for {}", alert.name);
    }
    let left: Vec<_> = sections.keys().filter(|title| title.starts_with("Prewarm")).collect();
    assert!(left.is_empty(), "runbooks for no alert: {left:?}");
}

/// One that fires and one that doesn't, of each alert; what they say is checked by `promtool test rules`.
#[test]
fn every_alert_has_tests_of_both_kinds() {
    let texts = texts("deploy/prometheus/tests").join("\n");
    let lines: Vec<&str> = texts.lines().map(str::trim).collect();
    let mut tested: BTreeMap<&str, [bool; 2]> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some(name) = line.strip_prefix("alertname: ") {
            let quiet = lines[at + 1] == "exp_alerts: []";
            assert!(quiet || lines[at + 2].starts_with("- exp_labels:"), "{name}");
            tested.entry(name).or_default()[usize::from(quiet)] = true;
        }
    }
    for alert in alerts() {
        assert_eq!(tested.remove(alert.name.as_str()), Some([true, true]), "{}", alert.name);
    }
    assert!(tested.is_empty(), "tests of no alert: {tested:?}");
}
