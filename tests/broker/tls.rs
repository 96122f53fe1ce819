//! AMQP over TLS, with brokers of the tests' own: what is accepted, what is refused, and what is said of it.

use std::path::Path;
use std::process::Stdio;

use prewarm::broker::BrokerError;
use prewarm::broker::amqp::ProbeReport;
use prewarm::config::{BrokerConfig, TlsConfig};
use prewarm::contract::PoolName;

use crate::certificates::{Authority, Dates};
use crate::setup::{config, probe, shared};
use crate::support::own_broker::OwnBroker;
use crate::support::worker::{self, Site, prewarm};

/// What every node here has in its configuration besides how it treats clients.
fn ssl_options(dir: &Path, clients: &str) -> String {
    let dir = dir.display();
    format!(
        "ssl_options.cacertfile = {dir}/ca.pem\nssl_options.certfile = {dir}/server.pem\n\
         ssl_options.keyfile = {dir}/server.key\n{clients}"
    )
}

async fn look(url: String, tls: &TlsConfig) -> Result<ProbeReport, BrokerError> {
    let config = BrokerConfig { tls: tls.clone(), ..config(url, "prewarm") };
    probe(&config, &PoolName::new("build").unwrap()).await
}

/// Asserts that the broker is refused with a message that has these parts in it.
async fn refused(url: String, tls: &TlsConfig, parts: &[&str]) {
    let text = look(url.clone(), tls).await.expect_err(&url).to_string();
    for part in parts {
        assert!(text.contains(part), "{url}: {text}");
    }
    assert!(!text.contains("guest"), "{text}");
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn the_brokers_certificate_is_checked() {
    let _shared = shared();
    let ours = Authority::new("ours");
    let mut broker = OwnBroker::prepare(None, |dir| ssl_options(dir, "ssl_options.verify = verify_none"));
    let dir = broker.dir.clone();
    let ca = ours.write(&dir.join("ca.pem"));
    ours.issue(&dir, "server", "localhost", Dates::Valid);
    broker.up();
    let (plain, port) = (broker.port, broker.tls_port);
    run(async {
        let trusting = TlsConfig { ca: Some(ca.clone()), ..TlsConfig::default() };
        let at = |host: &str, port: u16| format!("amqps://guest:guest@{host}:{port}/%2f");

        assert!(look(broker.url(), &trusting).await.unwrap().is_usable(), "without TLS");
        let report = look(at("localhost", port), &trusting).await.unwrap();
        assert!(report.is_usable());
        assert_eq!(report.server.unwrap().product, "RabbitMQ", "asked over TLS too");

        // One of the same name too: an authority that was made anew.
        for name in ["others", "ours"] {
            let others = Authority::new(name).write(&dir.join("others.pem"));
            let wrong = TlsConfig { ca: Some(others), ..TlsConfig::default() };
            let parts = ["from none of the authorities in", "others.pem", "broker.tls.ca"];
            refused(at("localhost", port), &wrong, &parts).await;
        }
        refused(at("localhost", port), &TlsConfig::default(), &["broker.tls.ca"]).await;

        let name = ["isn't for '127.0.0.1'", "but for", "localhost", "broker.tls.server_name"];
        refused(at("127.0.0.1", port), &trusting, &name).await;
        let named = TlsConfig { server_name: Some("localhost".into()), ..trusting.clone() };
        look(at("127.0.0.1", port), &named).await.unwrap();
        let misnamed = TlsConfig { server_name: Some("example.org".into()), ..trusting.clone() };
        refused(at("localhost", port), &misnamed, &["isn't for 'example.org'"]).await;

        refused(at("localhost", plain), &trusting, &["speaks no TLS", "5671"]).await;
        refused(at("localhost", port).replace("amqps", "amqp"), &trusting, &["with or without TLS"]).await;

        ours.issue(&dir, "server", "localhost", Dates::Past);
        broker.ctl(&["eval", "ssl:clear_pem_cache()."]);
        refused(at("localhost", port), &trusting, &["has expired", "renew"]).await;

        // Renewed, and from another authority: the file is read at each connection.
        let next = Authority::new("next");
        next.write(&ca);
        next.issue(&dir, "server", "localhost", Dates::Valid);
        broker.ctl(&["eval", "ssl:clear_pem_cache()."]);
        look(at("localhost", port), &trusting).await.unwrap();
    });
}

#[test]
fn a_job_goes_its_way_over_tls_with_a_client_certificate() {
    let _shared = shared();
    let ours = Authority::new("ours");
    let clients = "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true";
    let mut broker = OwnBroker::prepare(None, |dir| ssl_options(dir, clients));
    let dir = broker.dir.clone();
    let ca = ours.write(&dir.join("ca.pem"));
    ours.issue(&dir, "server", "localhost", Dates::Valid);
    let identity = ours.issue(&dir, "client", "worker", Dates::Valid);
    let stranger = Authority::new("others").issue(&dir, "stranger", "worker", Dates::Valid);
    broker.up();
    let url = format!("amqps://guest:guest@localhost:{}/%2f", broker.tls_port);
    worker::run(async |site: &Site| {
        let nobody = TlsConfig { ca: Some(ca.clone()), ..TlsConfig::default() };
        refused(
            url.clone(),
            &nobody,
            &["demands a client certificate", "broker.tls.cert and broker.tls.key"],
        )
        .await;
        let someone = TlsConfig { identity: Some(stranger), ..nobody.clone() };
        refused(url.clone(), &someone, &["the certificate in", "stranger.pem", "broker.tls.cert"]).await;

        let tls = format!(
            "[broker.tls]\nca = {ca:?}\ncert = {:?}\nkey = {:?}\nserver_name = \"localhost\"\n",
            identity.cert, identity.key
        );
        let setup = site.worker().pool("build", "entrypoint = [\"echo\"]").section(&tls);
        let worker = setup.start_with(&url).await;
        worker.until_ready().await;
        let mut submit = prewarm();
        submit.arg("--config").arg(&worker.config).args(["submit", "build", "--follow", "--", "over", "TLS"]);
        let done = tokio::task::spawn_blocking(move || submit.stdin(Stdio::null()).output().unwrap());
        let done = done.await.unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout), "over TLS\n", "{done:?}");
        assert!(done.status.success(), "{done:?}");
        assert!(worker.stop().await.success());
    });
}
