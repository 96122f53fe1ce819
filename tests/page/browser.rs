//! A real browser: headless Chromium, driven by chromedriver over WebDriver. Gone, with all its processes, when it is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::docker::eventually;
use crate::support::worker::processes_with;

const PATIENCE: Duration = Duration::from_secs(60);
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

pub struct Browser {
    driver: Child,
    /// Open for as long as it may say something.
    _said: BufReader<ChildStdout>,
    port: u16,
    session: String,
    /// Its own, and what its processes are known by.
    profile: PathBuf,
}

impl Browser {
    /// A browser that has never been used; its files are in `dir`.
    pub fn start(dir: &Path) -> Browser {
        let profile = dir.join("chromium");
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").env("HOME", dir).stdin(Stdio::null());
        let mut driver = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("chromedriver");
        let mut said = BufReader::new(driver.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("successfully on port") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "chromedriver ended");
        }
        let port = line.trim_end().trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap();
        let mut browser = Browser { driver, _said: said, port, session: String::new(), profile };
        let flags = FLAGS.iter().map(ToString::to_string);
        let args: Vec<String> =
            flags.chain([format!("--user-data-dir={}", browser.profile.display())]).collect();
        let session = browser.post(
            "/session",
            &json!({"capabilities": {"alwaysMatch": {
                "browserName": "chrome",
                "goog:chromeOptions": {"args": args},
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }}}),
        );
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        // It begins with a page of its own, which asks for things.
        browser.open("about:blank");
        browser.requests();
        browser
    }

    /// Opens a page and waits until it has loaded.
    pub fn open(&self, url: &str) {
        self.command("/url", &json!({"url": url}));
    }

    /// What a script in the page returns.
    pub fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// What a person sees of the page's body.
    pub fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap().to_owned()
    }

    /// What a person does with the keyboard, as WebDriver's actions.
    pub fn actions(&self, actions: &Value) {
        self.command("/actions", &json!({"actions": actions}));
    }

    /// A command of Chromium's own.
    pub fn chromium(&self, name: &str, params: &Value) -> Value {
        self.command("/goog/cdp/execute", &json!({"cmd": name, "params": params}))
    }

    /// What the console said since this was asked last: faults of scripts and of the policy, and what couldn't be loaded.
    pub fn console(&self) -> Vec<String> {
        let entries = self.command("/se/log", &json!({"type": "browser"}));
        entries.as_array().unwrap().iter().map(|entry| entry["message"].to_string()).collect()
    }

    /// The addresses that the page asked for since this was asked last.
    pub fn requests(&self) -> Vec<String> {
        let entries = self.command("/se/log", &json!({"type": "performance"}));
        let request = |entry: &Value| {
            let event: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let event = &event["message"];
            (event["method"] == "Network.requestWillBeSent")
                .then(|| event["params"]["request"]["url"].as_str().unwrap().to_owned())
        };
        entries.as_array().unwrap().iter().filter_map(request).collect()
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.post(&format!("/session/{}{path}", self.session), body)
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (code, value) = self.request("POST", path, &body.to_string()).expect("chromedriver's answer");
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    /// The answer's status and value.
    fn request(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut reader = BufReader::new(stream);
        let (mut code, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(status) = line.strip_prefix("http/1.1 ") {
                code = status[..3].parse().unwrap();
            } else if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            } else if line.is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer)?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        Ok((code, answer["value"].take()))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // This ends the browser; its driver has no other thing to do.
        let ended = self.request("DELETE", &format!("/session/{}", self.session), "");
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let left = || processes_with(self.profile.to_str().unwrap());
        let gone = eventually(Duration::from_secs(10), || left().is_empty());
        assert!(gone || std::thread::panicking(), "left behind: {:?}; {ended:?}", left());
    }
}
