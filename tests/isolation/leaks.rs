//! A job leaves whatever it can, and the next one in the same container takes an inventory: it is that of the first job.

use crate::support::worker::{self, Site};
use crate::{Ground, kinds, one_container, text};

/// A tmpfs of the pool's own, and a directory of the host's that may be read.
fn with_mounts(site: &Site, keys: &str) -> String {
    let shown = site.dir.join("shown");
    std::fs::create_dir_all(shown.join("below")).unwrap();
    std::fs::write(shown.join("file"), "the host's").unwrap();
    let scratch = r#""/scratch" = "size=8m,mode=1777""#;
    // A table can be written only once.
    let keys = if keys.contains("tmpfs = {") {
        keys.replace("tmpfs = {", &format!("tmpfs = {{ {scratch},"))
    } else {
        format!("{keys}\ntmpfs = {{ {scratch} }}")
    };
    one_container(&format!(
        "{keys}\nmounts = [{{ source = \"{}\", target = \"/shown\", read_only = true }}]",
        shown.display()
    ))
}

#[test]
fn a_job_finds_nothing_of_the_one_before() {
    worker::run(async |site: &Site| {
        let mut worker = site.worker();
        for (name, keys, _) in kinds() {
            worker = worker.pool(name, &with_mounts(site, &keys));
        }
        let ground = Ground { site, worker: worker.full().await };
        for (name, ..) in kinds() {
            let first = ground.inventory(name).await;
            assert!(first.text.contains("\n/data/file file 0644 1000:1000 "), "{name}: {}", first.text);
            assert!(first.text.contains("\n/shown/file file "), "{name}");
            assert!(!first.text.contains("left"), "{name}: {}", first.text);
            for round in 1..=2 {
                let left = ground.program(name, &["traces", "leave"]).await;
                let said = text(&left);
                let done = said.lines().last().and_then(|line| line.split(' ').next()?.parse().ok());
                let least = if name == "read-only" { 60 } else { 150 };
                assert!(done.is_some_and(|done: u32| done > least), "{name}: too little was done: {said}");
                ground.inventory(name).await.must_be(&first, &format!("{name}, round {round}"));
            }
        }
        ground.stop().await;
    });
}
