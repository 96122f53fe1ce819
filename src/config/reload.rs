//! What a running worker can take over from a configuration that was read again.

use std::collections::BTreeMap;

use super::{Config, PoolConfig};
use crate::contract::PoolName;

/// The pools that a running worker with the configuration `old` is to configure otherwise.
///
/// # Errors
/// The keys that need a restart, if any differs: then nothing is to be taken over, so that a worker never runs with half
/// of a file.
pub fn changes(old: &Config, new: &Config) -> Result<BTreeMap<PoolName, PoolConfig>, Vec<String>> {
    let mut restart = Vec::new();
    let sections = [
        ("[broker]", old.broker == new.broker),
        ("[engine]", old.engine == new.engine),
        ("[http]", old.http == new.http),
        ("[worker]", old.worker == new.worker),
    ];
    restart.extend(sections.into_iter().filter(|(_, same)| !same).map(|(name, _)| name.to_owned()));
    for name in new.pools.keys().filter(|name| !old.pools.contains_key(name)) {
        restart.push(format!("[pool.{name}] (new)"));
    }
    let mut changed = BTreeMap::new();
    for (name, was) in &old.pools {
        match new.pools.get(name) {
            None => restart.push(format!("[pool.{name}] (gone)")),
            Some(is) if is.concurrency != was.concurrency => restart.push(format!("pool.{name}.concurrency")),
            Some(is) if is != was => _ = changed.insert(name.clone(), is.clone()),
            Some(_) => {}
        }
    }
    if restart.is_empty() { Ok(changed) } else { Err(restart) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn config(text: &str) -> Config {
        parse("test.toml".as_ref(), text, []).unwrap().config
    }

    #[test]
    fn pools_can_change_and_the_rest_cannot() {
        let old = config("[pool.a]\nimage = \"x\"\n[pool.b]\nimage = \"y\"");
        assert_eq!(changes(&old, &old), Ok(BTreeMap::new()));
        let new = config("[pool.a]\nimage = \"x\"\nidle = 9\n[pool.b]\nimage = \"y\"");
        let changed = changes(&old, &new).unwrap();
        assert_eq!(changed.keys().map(PoolName::as_str).collect::<Vec<_>>(), ["a"]);
        assert_eq!(changed.values().next(), new.pools.values().next());
        let new = config(
            "[broker]\nprefix = \"p\"\n[pool.a]\nimage = \"x2\"\nconcurrency = 9\n[pool.c]\nimage = \"z\"",
        );
        assert_eq!(
            changes(&old, &new),
            Err(["[broker]", "[pool.c] (new)", "pool.a.concurrency", "[pool.b] (gone)"]
                .map(String::from)
                .into())
        );
    }
}
