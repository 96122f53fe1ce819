//! As much of PromQL as it takes to see which series an expression asks for, and what it does with them.

/// One selector: `name{matchers}[range]`.
#[derive(Debug, PartialEq)]
pub struct Selector {
    pub name: String,
    pub matchers: String,
    pub range: Option<String>,
    /// The function or aggregation whose argument it is; none at the top.
    pub inside: Option<String>,
}

/// Names that are series of Prometheus's own, of workers, of the broker, or recorded by our rules.
fn is_series(word: &str) -> bool {
    let ours = ["prewarm_", "process_", "rabbitmq_", "job_pool:"];
    word == "up" || word == "ALERTS" || ours.iter().any(|prefix| word.starts_with(prefix))
}

/// All selectors of an expression, in their order.
pub fn selectors(expr: &str) -> Vec<Selector> {
    let mut found = Vec::new();
    // The functions whose parentheses are open; "" for grouping ones.
    let mut open: Vec<String> = Vec::new();
    let mut last_word = String::new();
    let mut rest = expr;
    while let Some(c) = rest.chars().next() {
        if c.is_alphabetic() || c == '_' || c == ':' || c == '$' {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || "_:$".contains(c))).unwrap_or(rest.len());
            let word = &rest[..end];
            rest = &rest[end..];
            if is_series(word) {
                let matchers = take_within(&mut rest, '{', '}').unwrap_or_default();
                let range = take_within(&mut rest, '[', ']');
                let inside = open.last().filter(|name| !name.is_empty()).cloned();
                found.push(Selector { name: word.to_owned(), matchers, range, inside });
            } else {
                // `and (…)` is no call.
                last_word = if ["and", "or", "unless"].contains(&word) { "" } else { word }.to_owned();
            }
            continue;
        }
        match c {
            // `sum by (job) (…)`: the second parentheses are the aggregation's; the first hold labels.
            '(' if ["by", "without", "on", "ignoring", "group_left"].contains(&last_word.as_str()) => {
                last_word = aggregation_before(expr, rest);
                rest = &rest[rest.find(')').expect("labels end") + 1..];
                continue;
            }
            '(' => open.push(std::mem::take(&mut last_word)),
            ')' => _ = open.pop(),
            c if c.is_whitespace() => {}
            _ => last_word.clear(),
        }
        rest = &rest[c.len_utf8()..];
    }
    found
}

/// The word before `by (…)`: the aggregation. None before `on (…)`.
fn aggregation_before(expr: &str, rest: &str) -> String {
    let before = &expr[..expr.len() - rest.len()];
    let mut words = before.split_whitespace().rev();
    words.next();
    let word = words.next().unwrap_or_default();
    word.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// What stands between brackets right here; nothing in these expressions has such a bracket in a string.
fn take_within(rest: &mut &str, open: char, close: char) -> Option<String> {
    let inner = rest.strip_prefix(open)?;
    let end = inner.find(close).expect("brackets are closed");
    *rest = &inner[end + 1..];
    Some(inner[..end].to_owned())
}

#[test]
fn selectors_are_found() {
    let expr = r#"1 - sum by (le, pool) (rate(prewarm_x_bucket{job=~"$job", q=~"[.]a"}[$__rate_interval])) / (up{a="b"} > 0)"#;
    let selector = |name: &str, matchers: &str, range: Option<&str>, inside: Option<&str>| Selector {
        name: name.into(),
        matchers: matchers.into(),
        range: range.map(str::to_owned),
        inside: inside.map(str::to_owned),
    };
    assert_eq!(
        selectors(expr),
        [
            selector("prewarm_x_bucket", r#"job=~"$job", q=~"[.]a""#, Some("$__rate_interval"), Some("rate")),
            selector("up", r#"a="b""#, None, None),
        ]
    );
    let expr = "max without (state) (max_over_time(prewarm_c{state=\"idle\"}[5m])) == 0 and min by (job) (prewarm_g)";
    assert_eq!(
        selectors(expr),
        [
            selector("prewarm_c", "state=\"idle\"", Some("5m"), Some("max_over_time")),
            selector("prewarm_g", "", None, Some("min")),
        ]
    );
}
