//! `prewarm dead ls`

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::{exit, inert, line};
use crate::broker::BrokerError;
use crate::broker::dead::{DeadLetters, Letter};
use crate::config::TopologyMode;
use crate::contract::PoolName;
use crate::contract::event::timestamp;

/// Most characters of a reason in the table.
const REASON: usize = 100;
/// Most characters of a reason that are kept at all: our own have no more.
const KEPT: usize = 1000;

#[derive(clap::Args)]
pub struct Args {
    /// Only those of this pool
    #[arg(long)]
    pool: Option<PoolName>,
    /// Stop after this many, whichever come first
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Print a line of JSON for each
    #[arg(long)]
    json: bool,
}

/// What is shown is collected first: a reader that takes its time, as a pager does, must not keep the letters from others.
pub async fn ls(mut dead: DeadLetters, args: &Args, mode: TopologyMode) -> Result<u8, BrokerError> {
    let mut letters = Vec::new();
    let read = read(&mut dead, args, &mut letters).await;
    let (queue, of) = (dead.queue(), dead.at_start());
    // All is back by now, or will be when the broker notices.
    let closed = dead.close().await;
    read.and(closed)?;
    // The queue's own order is that of who looked at what: what is put back goes behind what wasn't looked at.
    letters.sort_by_key(|letter| (letter.died.is_none(), letter.died));
    if letters.is_empty() {
        let of_pool = args.pool.as_ref().map_or_else(String::new, |pool| format!(" of pool {pool}"));
        eprintln!("prewarm: {queue} holds no dead letters{of_pool}");
        return Ok(0);
    }
    let text = if args.json { lines(&letters) } else { table(&letters, of, SystemTime::now()) };
    // What a worker declares has no such limit; what somebody else declared may have RabbitMQ's own, which is 20.
    let most = letters.iter().map(|letter| letter.looked_at).max().unwrap_or(0);
    if mode == TopologyMode::Check && most >= 10 {
        eprintln!(
            "prewarm: a dead letter was put back {most} times; if {queue} was declared without a large \
             x-delivery-limit, the broker (RabbitMQ 4.0 to 4.2) drops it after 20"
        );
    }
    // Whoever reads it may have seen enough.
    let written = io::stdout().lock().write_all(text.as_bytes());
    Ok(if written.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) { exit::FAILURE } else { 0 })
}

async fn read(dead: &mut DeadLetters, args: &Args, letters: &mut Vec<Letter>) -> Result<(), BrokerError> {
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    while letters.len() < limit
        && let Some(one) = dead.next().await?
    {
        let mut letter = one.letter;
        if args.pool.is_none() || letter.pool == args.pool {
            letter.reason = cut(&letter.reason, KEPT);
            letters.push(letter);
        }
    }
    Ok(())
}

fn lines(letters: &[Letter]) -> String {
    let one = |letter: &Letter| format!("{}\n", inert(&value(letter).to_string()));
    letters.iter().map(one).collect()
}

/// A dead letter in JSON, without its body.
pub(super) fn value(letter: &Letter) -> serde_json::Value {
    json!({
        "id": letter.id,
        "pool": letter.pool,
        "kind": letter.kind,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "died_at": letter.died.map(timestamp),
        "bytes": letter.bytes,
    })
}

fn table(letters: &[Letter], of: u32, now: SystemTime) -> String {
    let head = ["ID", "POOL", "KIND", "ATTEMPTS", "AGE", "REASON"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(letters.iter().map(|l| row(l, now))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    let mut text = String::new();
    for [id, pool, kind, attempts, age, reason] in &rows {
        let [w_id, w_pool, w_kind, w_attempts, w_age] = widths;
        text += &format!(
            "{id:w_id$}  {pool:w_pool$}  {kind:w_kind$}  {attempts:>w_attempts$}  {age:>w_age$}  {reason}\n"
        );
    }
    text + "\n" + &counts(letters, of)
}

fn row(letter: &Letter, now: SystemTime) -> [String; 6] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        or_dash(letter.id.as_deref().map(line)),
        or_dash(letter.pool.as_ref().map(ToString::to_string)),
        line(&letter.kind),
        or_dash(letter.attempts.map(|n| n.to_string())),
        or_dash(letter.died.map(|at| age(now.duration_since(at).unwrap_or_default()))),
        cut(&line(&letter.reason), REASON),
    ]
}

fn counts(letters: &[Letter], of: u32) -> String {
    let mut by: BTreeMap<(String, String), u64> = BTreeMap::new();
    for letter in letters {
        let pool = letter.pool.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        *by.entry((pool, line(&letter.kind))).or_default() += 1;
    }
    let mut text = String::new();
    for ((pool, kind), count) in by {
        text += &format!("{count:>7}  {pool}  {kind}\n");
    }
    text += &match letters.len() {
        shown if shown < of as usize => format!("{shown:>7}  of {of} in the queue\n"),
        shown => format!("{shown:>7}  in all\n"),
    };
    let ids: Vec<&String> = letters.iter().filter_map(|letter| letter.id.as_ref()).collect();
    let distinct = ids.iter().collect::<HashSet<_>>().len();
    if distinct < ids.len() {
        text += &format!("{} have an id that another one has too\n", ids.len() - distinct);
    }
    text
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// As people say it: the largest unit alone.
pub(in crate::cli) fn age(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: Option<&str>, kind: &str, died: u64) -> Letter {
        Letter {
            id: id.map(str::to_owned),
            pool: PoolName::new("build").ok(),
            kind: kind.to_owned(),
            reason: format!("bad\nnews \u{1b}[31m{}", "x".repeat(200)),
            attempts: Some(4),
            died: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(died)),
            looked_at: 0,
            bytes: 7,
        }
    }

    #[test]
    fn a_row_is_one_line_that_does_a_terminal_no_harm() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let letters =
            [letter(Some("a"), "k", 9_970), letter(None, "k", 0), letter(Some("a"), "other", 20_000)];
        let text = table(&letters, 3, now);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID  POOL   KIND   ATTEMPTS  AGE  REASON"), "{text}");
        assert!(lines[1].starts_with("a   build  k             4  30s  bad news \\u001b[31mxxx"), "{text}");
        assert!(lines[1].ends_with("x…") && lines[1].chars().count() < 150, "{text}");
        assert!(lines[2].starts_with("-   build  k             4   2h"), "{text}");
        assert!(lines[3].contains("  0s  "), "a clock that is behind: {text}");
        assert!(table(&letters, 4, now).contains("      3  of 4 in the queue"));
        assert_eq!(
            lines[5..],
            [
                "      2  build  k",
                "      1  build  other",
                "      3  in all",
                "1 have an id that another one has too",
            ]
        );
    }

    #[test]
    fn ages_have_one_unit() {
        let ages = [0, 59, 60, 3599, 3600, 86_399, 86_400, 86_400 * 400];
        let text = ages.map(|s| age(Duration::from_secs(s)));
        assert_eq!(text, ["0s", "59s", "1m", "59m", "1h", "23h", "1d", "400d"]);
    }
}
