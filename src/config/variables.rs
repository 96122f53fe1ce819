//! The `PREWARM_…` variables of the environment.
//!
//! A variable isn't translated to a key: that would be ambiguous, since both pools' names and keys may
//! contain `_`. Instead, whoever reads a key asks for its variable, and what nobody asked for is unknown.

use std::collections::BTreeMap;

use toml::de::DeValue;

/// The variables that may configure something, by name.
pub(super) struct Variables<'e>(BTreeMap<&'e str, Variable<'e>>);

/// One variable.
pub(super) struct Variable<'e> {
    /// Its name.
    pub(super) name: &'e str,
    /// What it was set to.
    pub(super) text: &'e str,
    /// The same as a TOML value if it is one, otherwise as a string.
    pub(super) value: DeValue<'e>,
}

/// A name that a variable gives.
#[derive(Debug, PartialEq)]
pub(super) struct Named<'e> {
    /// The variable.
    pub(super) variable: &'e str,
    /// What the variables of all keys with that name start with.
    pub(super) prefix: &'e str,
    /// The name, in the variables' spelling.
    pub(super) name: &'e str,
}

/// What every variable starts with.
pub(super) const PREFIX: &str = "PREWARM";
/// The variable that names the configuration file.
pub(super) const FILE: &str = "PREWARM_CONFIG";
/// Variables that are read by others: the file's name and the log's filter and format.
pub(super) const OTHERS: [&str; 3] = [FILE, "PREWARM_LOG", "PREWARM_LOG_FORMAT"];

impl<'e> Variables<'e> {
    /// Picks ours from an environment.
    pub(super) fn pick(environment: &'e [(String, String)]) -> Variables<'e> {
        let ours = environment.iter().filter(|(name, text)| is_setting(name, text));
        Variables(ours.map(|(name, text)| (name.as_str(), Variable::new(name, text))).collect())
    }

    /// The variable of that name.
    pub(super) fn get(&self, name: &str) -> Option<&Variable<'e>> {
        self.0.get(name)
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = &'e str> {
        self.0.keys().copied()
    }

    /// Whether there is anything about pools.
    pub(super) fn define_pools(&self) -> bool {
        self.names().any(|name| name.starts_with("PREWARM_POOL_"))
    }

    /// The names that variables alone give, `<prefix>_<NAME>_<KEY>` with `key` as the key.
    pub(super) fn named(&self, prefix: &str, key: &str) -> impl Iterator<Item = Named<'e>> {
        let (start, end) = (format!("{prefix}_"), format!("_{}", spelling(key)));
        self.names().filter_map(move |variable| {
            let name = variable.strip_prefix(&start)?.strip_suffix(&end)?;
            let prefix = variable.strip_suffix(&end)?;
            (name == spelling(name)).then_some(Named { variable, prefix, name })
        })
    }
}

impl<'e> Variable<'e> {
    fn new(name: &'e str, text: &'e str) -> Variable<'e> {
        let value = DeValue::parse(text).map_or(DeValue::String(text.into()), toml::Spanned::into_inner);
        Variable { name, text, value }
    }
}

/// A key or a pool's name as a part of a variable's name.
pub(super) fn spelling(name: &str) -> String {
    name.to_uppercase().replace(['-', '.'], "_")
}

fn is_setting(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix("PREWARM_") else { return false };
    !OTHERS.contains(&name)
        && !rest.starts_with("TEST_")
        && !rest.starts_with("DEMO_")
        && !is_service_link(rest, value)
}

/// Kubernetes gives every container such variables for each Service of its namespace: a Service that is
/// called `prewarm` or `prewarm-metrics` must not keep the worker from starting.
fn is_service_link(rest: &str, value: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_protocol = |part: &str| ["TCP", "UDP", "SCTP"].contains(&part);
    let parts: Vec<&str> = rest.split('_').collect();
    match parts.as_slice() {
        [.., "SERVICE", "HOST"] => true,
        [.., "PORT", port, protocol] | [.., "PORT", port, protocol, "PROTO" | "PORT" | "ADDR"]
            if is_number(port) && is_protocol(protocol) =>
        {
            true
        }
        // `PREWARM_PORT` is also what somebody might write who means `PREWARM_HTTP_LISTEN`.
        [.., "PORT"] if !rest.ends_with("SERVICE_PORT") => value.contains("://"),
        parts => parts.windows(2).any(|pair| pair == ["SERVICE", "PORT"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pairs: &[(&str, &str)]) -> Vec<String> {
        Variables::pick(&environment(pairs)).names().map(str::to_owned).collect()
    }

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_value_is_toml_if_it_can_be() {
        let kind = |text| Variable::new("", text).value.type_str();
        for (text, expected) in [
            ("1", "integer"),
            ("1.5", "float"),
            ("true", "boolean"),
            ("[1]", "array"),
            ("{ a = 1 }", "table"),
            ("\"x\"", "string"),
            ("10m", "string"),
            ("", "string"),
            ("[1", "string"),
            ("amqp://h", "string"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn what_belongs_to_others_is_left_alone() {
        let others = [
            ("PATH", ""),
            ("PREWARM", ""),
            ("PREWARM_CONFIG", "x"),
            ("PREWARM_LOG", "debug"),
            ("PREWARM_LOG_FORMAT", "json"),
            ("PREWARM_TEST_BROKER", "x"),
            ("PREWARM_DEMO_X", "x"),
            ("PREWARM_SERVICE_HOST", "10.0.0.1"),
            ("PREWARM_SERVICE_PORT", "9464"),
            ("PREWARM_SERVICE_PORT_METRICS", "9464"),
            ("PREWARM_PORT", "tcp://10.0.0.1:9464"),
            ("PREWARM_METRICS_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
            ("PREWARM_METRICS_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ];
        assert!(names(&others).is_empty(), "{:?}", names(&others));
        let ours = [("PREWARM_PORT", "9464"), ("PREWARM_X", ""), ("PREWARM_LOGS", "")];
        assert_eq!(names(&ours).len(), 3);
    }

    #[test]
    fn the_required_key_tells_where_a_name_ends() {
        let environment = environment(&[
            ("PREWARM_POOL_MY_BUILD_IMAGE", "a"),
            ("PREWARM_POOL_lower_IMAGE", "a"),
            ("PREWARM_POOL_OTHER_MEMORY", "a"),
            ("PREWARM_POOL_IMAGE", "a"),
        ]);
        let named: Vec<_> = Variables::pick(&environment).named("PREWARM_POOL", "image").collect();
        let variable = "PREWARM_POOL_MY_BUILD_IMAGE";
        assert_eq!(named, [Named { variable, prefix: "PREWARM_POOL_MY_BUILD", name: "MY_BUILD" }]);
        assert_eq!(spelling("my-build.x"), "MY_BUILD_X");
    }
}
