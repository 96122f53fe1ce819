//! `deploy/metrics.md`: the reference of all metrics, made from what a worker says of them itself.

use std::fmt::Write;
use std::fs;

use crate::exposition::{FAMILIES, Family};
use crate::{path, read};

const PAGE: &str = "deploy/metrics.md";
const WRITE: &str = "PREWARM_TEST_WRITE";

const HEAD: &str = "# Metrics

What a worker tells Prometheus at `/metrics` (`http.listen`, port 9464). Every series is there from the start, at zero; labels are names of
pools and closed sets of words. Histograms have `_bucket`, `_count` and `_sum`. What the figures mean for operation is in
[`dashboards`](../dashboards/README.md).

This page is made from the worker's own words by a test, which fails if it is out of date:
`PREWARM_TEST_WRITE=1 cargo test --test observability reference` writes it.

| metric | type | labels | unit | |
| --- | --- | --- | --- | --- |
";

#[test]
fn the_reference_is_what_a_worker_says() {
    let mut page = HEAD.to_owned();
    for (name, family) in FAMILIES.iter() {
        let Family { kind, help, .. } = family;
        writeln!(page, "| `{name}` | {kind} | {} | {} | {help} |", labels(family), unit(name)).unwrap();
    }
    if std::env::var_os(WRITE).is_some() {
        fs::write(path(PAGE), &page).unwrap();
    }
    assert!(read(PAGE) == page, "{PAGE} is out of date: {WRITE}=1 writes it");
}

#[test]
fn names_and_words_are_in_order() {
    for (name, family) in FAMILIES.iter() {
        let ours = name.starts_with("prewarm_");
        assert!(ours || name.starts_with("process_"), "{name} has no prefix");
        assert!(
            family.help.ends_with('.') && family.help.len() >= 10,
            "{name}: what is it? '{}'",
            family.help
        );
        assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name} is a {}", family.kind);
        for (label, values) in &family.labels {
            let open = ["pool", "version"].contains(&label.as_str());
            assert!(open || (2..20).contains(&values.len()), "{name}: {label} has the values {values:?}");
            // A registry that isn't full from the start lacks some pools' series.
            assert!(label != "pool" || values.len() == 2, "{name}: {values:?}");
        }
    }
}

/// Names of labels; with their values where these are a closed set.
fn labels(family: &Family) -> String {
    let one = |(name, values): (&String, &std::collections::BTreeSet<String>)| {
        if ["pool", "version"].contains(&name.as_str()) {
            return format!("`{name}`");
        }
        let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
        format!("`{name}`: {}", values.join(", "))
    };
    family.labels.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// By the convention for names.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit('_').next() {
        Some("seconds") => "seconds",
        Some("bytes") => "bytes",
        _ => "",
    }
}
