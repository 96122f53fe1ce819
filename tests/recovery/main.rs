//! What comes back, what is cancelled, and what can't be delivered: jobs through the built binary whose broker, reply queue
//! or container fails them.

mod cancel;
mod comes_back;
mod hostile;
#[path = "../broker/proxy.rs"]
mod proxy;
mod replies;
mod service;
#[path = "../support/mod.rs"]
mod support;

/// The broker's address, by way of a proxy.
async fn by_way_of_a_proxy() -> (proxy::Proxy, String) {
    let url = support::broker::url();
    let (user, host) = url.rsplit_once('@').unwrap();
    let (host, vhost) = host.split_once('/').unwrap();
    let proxy = proxy::Proxy::to(host.to_owned()).await;
    let address = format!("{user}@{}/{vhost}", proxy.address);
    (proxy, address)
}
