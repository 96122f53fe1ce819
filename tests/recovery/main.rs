//! What comes back, what is cancelled, and what can't be delivered: jobs through the built binary whose broker, reply queue
//! or container fails them.

mod cancel;
mod comes_back;
#[path = "../broker/proxy.rs"]
mod proxy;
mod replies;
mod service;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::PathBuf;

use support::worker::Site;

/// A folder of the host in which jobs leave a mark each time they run: an account that no broker keeps.
struct Marks(PathBuf);

impl Marks {
    fn new(site: &Site) -> Marks {
        let dir = site.dir.join("marks");
        fs::create_dir_all(&dir).unwrap();
        Marks(dir)
    }

    /// For a pool's keys.
    fn mount(&self) -> String {
        format!("mounts = [{{ source = \"{}\", target = \"/marks\" }}]", self.0.display())
    }

    /// How often the job ran whose script says `echo run >>/marks/NAME`.
    fn runs(&self, name: &str) -> usize {
        fs::read_to_string(self.0.join(name)).unwrap_or_default().lines().count()
    }
}

/// The broker's address, by way of a proxy.
async fn by_way_of_a_proxy() -> (proxy::Proxy, String) {
    let url = support::broker::url();
    let (user, host) = url.rsplit_once('@').unwrap();
    let (host, vhost) = host.split_once('/').unwrap();
    let proxy = proxy::Proxy::to(host.to_owned()).await;
    let address = format!("{user}@{}/{vhost}", proxy.address);
    (proxy, address)
}
