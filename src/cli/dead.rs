//! `prewarm dead`: the jobs that could not be processed, one by one.
//!
//! `table.rs` lists them, `show.rs` tells all of one; here is what acts on them. While a command looks, nobody else sees
//! what it has looked at; at its end, however it ends, all that it didn't act on is back in the queue.

mod show;
pub(super) mod table;

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use clap::Subcommand;

use super::{ConfigArgs, block_on, exit, fail, inert};
use crate::broker::BrokerError;
use crate::broker::dead::{DeadLetters, Letter};
use crate::config;
use crate::contract::PoolName;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the dead letters, the oldest first, and count them by pool and kind
    Ls(table::Args),
    /// Show all of one: properties, headers, reason, and the body with its secrets masked
    Show(show::Args),
    /// Publish dead letters as the jobs that they were, with none of their attempts counted
    Replay(Choice),
    /// Delete dead letters for good
    Purge(PurgeArgs),
}

/// Which dead letters to act on.
#[derive(clap::Args)]
struct Choice {
    /// Ids of the jobs, as `prewarm dead ls` shows them
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
    /// With --all: only those of this pool
    // Not only that it requires --all: clap waives a requirement that conflicts with what is there.
    #[arg(long, requires = "all", conflicts_with = "ids")]
    pool: Option<PoolName>,
    /// With --all: only those of this kind, such as `invalid_job` or `delivery_limit`
    #[arg(long, requires = "all", conflicts_with = "ids")]
    kind: Option<String>,
    /// Stop as soon as each id was met once [default: look through the whole queue, since an id may be there twice]
    #[arg(long, conflicts_with = "all")]
    first: bool,
}

#[derive(clap::Args)]
struct PurgeArgs {
    #[command(flatten)]
    choice: Choice,
    /// Don't ask
    #[arg(long)]
    yes: bool,
}

pub fn main(config: &ConfigArgs, args: Args) -> ExitCode {
    // Dead letters may be of pools that no file has any more: only the broker's section counts here.
    let broker = match config::load_broker(config.config.as_deref(), config::environment()) {
        Ok(broker) => broker,
        Err(faults) => return fail(exit::CONFIG, faults),
    };
    let done = block_on(async {
        let dead = DeadLetters::open(&broker).await?;
        match args.verb {
            Verb::Ls(args) => table::ls(dead, &args, broker.topology).await,
            Verb::Show(args) => show::show(dead, args).await,
            Verb::Replay(choice) => replay(dead, choice).await,
            Verb::Purge(args) => purge(dead, args).await,
        }
    });
    match done {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => fail(exit::BROKER, error),
        Err(code) => code,
    }
}

/// What was asked for, and what of it was met so far.
struct Wanted {
    ids: BTreeMap<String, u32>,
    pool: Option<PoolName>,
    kind: Option<String>,
    first: bool,
    all: bool,
}

impl From<Choice> for Wanted {
    fn from(Choice { ids, all, pool, kind, first }: Choice) -> Wanted {
        Wanted { ids: ids.into_iter().map(|id| (id, 0)).collect(), pool, kind, first, all }
    }
}

impl Wanted {
    fn one(id: String, first: bool) -> Wanted {
        Wanted { ids: BTreeMap::from([(id, 0)]), pool: None, kind: None, first, all: false }
    }

    /// Whether to act on this one.
    fn takes(&mut self, letter: &Letter) -> bool {
        if self.all {
            return self.pool.as_ref().is_none_or(|pool| letter.pool.as_ref() == Some(pool))
                && self.kind.as_ref().is_none_or(|kind| letter.kind == *kind);
        }
        let Some(met) = letter.id.as_ref().and_then(|id| self.ids.get_mut(id)) else { return false };
        *met += 1;
        *met == 1 || !self.first
    }

    /// Whether nothing more needs to be looked at.
    fn is_complete(&self) -> bool {
        self.first && self.ids.values().all(|met| *met > 0)
    }

    /// Tells of ids that weren't there, and of those that were there more than once. False if one wasn't there.
    fn tell(&self, queue: &str) -> bool {
        for (id, met) in &self.ids {
            let id = line(id);
            match met {
                0 => eprintln!("prewarm: no dead letter in {queue} has the id '{id}'"),
                1 => {}
                n => eprintln!("prewarm: '{id}' was there {n} times"),
            }
        }
        self.ids.values().all(|met| *met > 0)
    }
}

/// Somebody else's text in one line that does a terminal no harm.
fn line(text: &str) -> String {
    inert(&text.replace('\n', " "))
}

/// What came of replaying.
#[derive(Default)]
struct Replayed {
    jobs: u64,
    /// Those that stay, by why.
    stay: BTreeMap<String, u64>,
}

async fn replay(mut dead: DeadLetters, choice: Choice) -> Result<u8, BrokerError> {
    let mut wanted = Wanted::from(choice);
    let mut replayed = Replayed::default();
    let done = replay_each(&mut dead, &mut wanted, &mut replayed).await;
    let queue = dead.queue();
    let closed = dead.close().await;
    println!("replayed {}", replayed.jobs);
    for (why, count) in &replayed.stay {
        eprintln!("prewarm: stays in {queue}: {count}: {why}");
    }
    done.and(closed)?;
    let found = wanted.tell(&queue);
    Ok(if found && replayed.stay.is_empty() { 0 } else { exit::FAILURE })
}

async fn replay_each(
    dead: &mut DeadLetters,
    wanted: &mut Wanted,
    replayed: &mut Replayed,
) -> Result<(), BrokerError> {
    while !wanted.is_complete()
        && let Some(one) = dead.next().await?
    {
        if !wanted.takes(&one.letter) {
            continue;
        }
        let stays = match &one.letter.pool {
            None => "its pool isn't known; `prewarm dead show ID --body` gives what to publish".to_owned(),
            Some(pool) => match dead.replay(&one, pool).await {
                Ok(()) => {
                    replayed.jobs += 1;
                    continue;
                }
                Err(error @ (BrokerError::Unroutable { .. } | BrokerError::Refused)) => error.to_string(),
                Err(error) => return Err(error),
            },
        };
        *replayed.stay.entry(stays).or_default() += 1;
    }
    Ok(())
}

async fn purge(mut dead: DeadLetters, PurgeArgs { choice, yes }: PurgeArgs) -> Result<u8, BrokerError> {
    let queue = dead.queue();
    if choice.all && !yes {
        let of = choice.pool.as_ref().map_or_else(String::new, |pool| format!(" of pool {pool}"));
        let kind = choice.kind.as_ref().map_or_else(String::new, |kind| format!(" of kind {}", line(kind)));
        let all = format!("all dead letters{of}{kind} ({queue} holds {} in all)", dead.at_start());
        if !io::stdin().is_terminal() {
            eprintln!("prewarm: purge --all deletes {all} for good: add --yes");
            dead.close().await?;
            return Ok(2);
        }
        if !confirmed(&format!("Delete {all} for good?")) {
            eprintln!("prewarm: nothing was deleted");
            dead.close().await?;
            return Ok(exit::FAILURE);
        }
    }
    let mut wanted = Wanted::from(choice);
    let mut purged = 0;
    let done = purge_each(&mut dead, &mut wanted, &mut purged).await;
    if let Err(error) = done.and(dead.close().await) {
        eprintln!(
            "prewarm: at most {purged} were purged before this; what the broker hasn't heard of is still there"
        );
        return Err(error);
    }
    println!("purged {purged}");
    Ok(if wanted.tell(&queue) { 0 } else { exit::FAILURE })
}

async fn purge_each(
    dead: &mut DeadLetters,
    wanted: &mut Wanted,
    purged: &mut u64,
) -> Result<(), BrokerError> {
    while !wanted.is_complete()
        && let Some(one) = dead.next().await?
    {
        if wanted.takes(&one.letter) {
            dead.forget(&one).await?;
            *purged += 1;
        }
    }
    Ok(())
}

fn confirmed(question: &str) -> bool {
    eprint!("{question} [y/N] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: &str, pool: &str, kind: &str) -> Letter {
        Letter {
            id: Some(id.to_owned()).filter(|id| !id.is_empty()),
            pool: PoolName::new(pool).ok(),
            kind: kind.to_owned(),
            reason: String::new(),
            attempts: None,
            died: None,
            looked_at: 0,
            bytes: 0,
        }
    }

    fn choice(ids: &[&str]) -> Choice {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        Choice { all: ids.is_empty(), ids, pool: None, kind: None, first: false }
    }

    #[test]
    fn ids_are_taken_as_often_as_they_are_there() {
        let mut wanted = Wanted::from(choice(&["a", "b", "a"]));
        let taken = ["a", "c", "", "a"].map(|id| wanted.takes(&letter(id, "p", "k")));
        assert_eq!(taken, [true, false, false, true]);
        assert_eq!((wanted.ids["a"], wanted.ids["b"]), (2, 0));
        assert!(!wanted.tell("q"), "b wasn't there");
        assert!(wanted.takes(&letter("b", "p", "k")) && wanted.tell("q"));
        assert!(!wanted.is_complete(), "there may be more of them");
    }

    /// `purge 7 --pool a` must not delete 7 of pool b.
    #[test]
    fn a_filter_is_refused_where_it_would_not_be_heeded() {
        use clap::Parser;
        for line in [
            "purge 7 --pool a",
            "replay 7 --kind k",
            "purge --pool a",
            "purge 7 --all",
            "purge --all --first",
        ] {
            let line = ["prewarm", "dead"].into_iter().chain(line.split(' '));
            assert!(super::super::Cli::try_parse_from(line.clone()).is_err(), "{line:?}");
        }
        for line in ["purge 7 8 --first", "replay --all --pool a --kind k", "purge --all --yes"] {
            let line = ["prewarm", "dead"].into_iter().chain(line.split(' '));
            assert!(super::super::Cli::try_parse_from(line.clone()).is_ok(), "{line:?}");
        }
    }

    #[test]
    fn first_takes_each_once_and_is_then_complete() {
        let mut wanted = Wanted::from(Choice { first: true, ..choice(&["a", "b"]) });
        let taken = ["a", "a"].map(|id| wanted.takes(&letter(id, "p", "k")));
        assert_eq!((taken, wanted.is_complete()), ([true, false], false));
        assert!(wanted.takes(&letter("b", "p", "k")) && wanted.is_complete());
    }

    #[test]
    fn all_is_narrowed_by_pool_and_kind() {
        let mut wanted = Wanted::from(choice(&[]));
        assert!(wanted.takes(&letter("", "?", "k")) && !wanted.is_complete() && wanted.tell("q"));
        let mut wanted =
            Wanted::from(Choice { pool: PoolName::new("p").ok(), kind: Some("k".into()), ..choice(&[]) });
        let of = [("p", "k"), ("p", "other"), ("other", "k"), ("?", "k")];
        assert_eq!(
            of.map(|(pool, kind)| wanted.takes(&letter("a", pool, kind))),
            [true, false, false, false]
        );
    }
}
