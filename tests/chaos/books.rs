//! Pure: the books of one run. What was published, what came back, what really ran; and what that comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::broker::{RESULT, data};

/// What a job must come to.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// It prints its id and its run's token, and exits with this.
    Marked(u8),
    /// Judged by its result.
    Judged(fn(&Value) -> Result<(), String>),
}

/// A job as the books know it.
#[derive(Debug)]
struct Entry {
    expect: Expect,
    confirmed: bool,
    /// Published more than once, since the first time was never confirmed: there may be two messages of it.
    twice: bool,
    /// Thrown away on purpose.
    purged: bool,
    /// Final results, each once, however often the broker has given it out.
    results: Vec<(Vec<u8>, Value)>,
    /// Why it is among the dead letters, each time.
    dead: Vec<String>,
    /// By attempt: the tokens that its replies show.
    attempts: BTreeMap<u64, BTreeSet<String>>,
}

/// A run that left its marks in the folder that all containers share.
#[derive(Clone, Debug, Default)]
struct Ran {
    ended: bool,
}

/// The books while a run goes on.
#[derive(Default)]
pub struct Books {
    jobs: BTreeMap<String, Entry>,
    unexpected: Vec<String>,
    /// When each new final result came.
    came: Vec<Instant>,
    /// When a fault was over.
    over: Vec<Instant>,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub attempted: usize,
    pub confirmed: usize,
    pub completed: usize,
    pub failed: usize,
    pub dead: usize,
    /// Jobs that ran more than once: how many there are of each list of attempts seen.
    pub duplicated: BTreeMap<Vec<u64>, usize>,
    /// How many results there are beyond each job's first.
    pub second_results: usize,
    /// Jobs that ran more than once and were published more than once, since the first time was not confirmed.
    pub published_twice: usize,
    pub lost: Vec<String>,
    pub unexpected: Vec<String>,
    /// The longest from the end of a fault to the next result.
    pub recovery: Option<Duration>,
}

impl Tally {
    pub fn duplicates(&self) -> usize {
        self.duplicated.values().sum()
    }
}

impl Books {
    pub fn attempted(&mut self, id: &str, expect: Expect) {
        let entry = Entry {
            expect,
            confirmed: false,
            twice: false,
            purged: false,
            results: Vec::new(),
            dead: Vec::new(),
            attempts: BTreeMap::new(),
        };
        assert!(self.jobs.insert(id.to_owned(), entry).is_none(), "{id} is used twice");
    }

    pub fn published_again(&mut self, id: &str) {
        self.jobs.get_mut(id).unwrap().twice = true;
    }

    pub fn confirmed(&mut self, id: &str) {
        self.jobs.get_mut(id).unwrap().confirmed = true;
    }

    pub fn fault_is_over(&mut self) {
        self.over.push(Instant::now());
    }

    /// Those that have come to nothing yet were thrown away on purpose.
    pub fn forget_open(&mut self) {
        for id in self.open() {
            self.jobs.get_mut(&id).unwrap().purged = true;
        }
    }

    /// Takes a reply of any kind.
    pub fn reply(&mut self, kind: &str, bytes: Vec<u8>) {
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let id = body["job_id"].as_str().unwrap_or_default();
        let Some(entry) = self.jobs.get_mut(id) else {
            self.unexpected.push(format!("a {kind} of a job that was never sent: {body}"));
            return;
        };
        let attempt = body["attempt"].as_u64().unwrap_or_default();
        let tokens = entry.attempts.entry(attempt).or_default();
        let text = if kind == RESULT { &body["stdout"] } else { &body };
        if let (Expect::Marked(_), Some(text)) = (entry.expect, text["text"].as_str()) {
            tokens.extend(text.split_whitespace().nth(1).map(str::to_owned));
        }
        if kind == RESULT && !entry.results.iter().any(|(known, _)| *known == bytes) {
            entry.results.push((bytes, body));
            self.came.push(Instant::now());
        }
    }

    /// A reply came to where those go whose reply queue is gone or full, which none here is.
    pub fn astray(&mut self, bytes: &[u8]) {
        self.unexpected.push(format!("not sent to its reply queue: {}", String::from_utf8_lossy(bytes)));
    }

    /// Takes a dead letter.
    pub fn dead(&mut self, id: &str, why: String) {
        match self.jobs.get_mut(id) {
            Some(entry) => entry.dead.push(why),
            None => self.unexpected.push(format!("a dead letter of a job that was never sent: {id}: {why}")),
        }
    }

    /// Final results so far.
    pub fn results(&self) -> usize {
        self.came.len()
    }

    /// Jobs that are confirmed and have come to nothing yet.
    pub fn open(&self) -> Vec<String> {
        let open = |entry: &Entry| {
            entry.confirmed && !entry.purged && entry.results.is_empty() && entry.dead.is_empty()
        };
        self.jobs.iter().filter(|(_, entry)| open(entry)).map(|(id, _)| id.clone()).collect()
    }

    /// Closes the books over what the jobs themselves have written down: lines `ID TOKEN begin` and `ID TOKEN end`.
    pub fn close(&self, marks: &str) -> Tally {
        let mut unexpected = self.unexpected.clone();
        let mut ran: BTreeMap<&str, BTreeMap<&str, Ran>> = BTreeMap::new();
        for line in marks.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [id, token, "begin"] => _ = ran.entry(id).or_default().entry(token).or_default(),
                [id, token, "end"] => ran.entry(id).or_default().entry(token).or_default().ended = true,
                _ => unexpected.push(format!("a mark '{line}'")),
            }
        }
        let mut tally = Tally { attempted: self.jobs.len(), ..Tally::default() };
        for (id, entry) in &self.jobs {
            let none = BTreeMap::new();
            let ran = ran.get(id.as_str()).unwrap_or(&none);
            tally.confirmed += usize::from(entry.confirmed);
            tally.second_results += entry.results.len().saturating_sub(1);
            tally.dead += usize::from(!entry.dead.is_empty());
            let ended = entry.results.iter().filter(|(_, r)| r["status"] != "error").count();
            tally.completed += usize::from(ended > 0);
            tally.failed +=
                usize::from(ended > 0 && entry.results.iter().all(|(_, r)| r["status"] != "succeeded"));
            if ran.len() > 1 && entry.twice {
                tally.published_twice += 1;
            } else if ran.len() > 1 {
                *tally.duplicated.entry(entry.attempts.keys().copied().collect()).or_default() += 1;
            }
            unexpected.extend(entry.faults(ran).map(|fault| format!("{id}: {fault}")));
        }
        tally.lost = self.open();
        tally.unexpected = unexpected;
        let next = |over: &Instant| self.came.iter().find(|came| *came > over).map(|came| *came - *over);
        tally.recovery = self.over.iter().filter_map(next).max();
        tally
    }
}

impl Entry {
    /// All that is wrong with a job of which these runs are known.
    fn faults(&self, ran: &BTreeMap<&str, Ran>) -> impl Iterator<Item = String> {
        let mut faults = Vec::new();
        let last = self.attempts.keys().next_back().copied().unwrap_or_default();
        if !self.twice {
            if ran.len() as u64 > last && last > 0 {
                faults.push(format!("ran {} times, and the last attempt that shows is {last}", ran.len()));
            }
            for (attempt, tokens) in self.attempts.iter().filter(|(_, tokens)| tokens.len() > 1) {
                faults.push(format!("{} runs are attempt {attempt}", tokens.len()));
            }
            let mut by_attempt = BTreeMap::<u64, usize>::new();
            for (_, result) in &self.results {
                *by_attempt.entry(result["attempt"].as_u64().unwrap_or_default()).or_default() += 1;
            }
            for (attempt, results) in by_attempt.into_iter().filter(|(_, results)| *results > 1) {
                faults.push(format!("{results} different results of attempt {attempt}"));
            }
        }
        for (_, result) in &self.results {
            let wrong = match (self.expect, result["status"].as_str()) {
                (_, Some("error")) if self.dead.is_empty() => Err("an error, and no dead letter".to_owned()),
                (_, Some("error")) => Ok(()),
                (Expect::Judged(judge), _) => judge(result),
                (Expect::Marked(code), _) => marked(result, code, ran),
            };
            if let Err(wrong) = wrong {
                faults.push(format!("{wrong}: {result}"));
            }
        }
        faults.into_iter()
    }
}

/// What is wrong with the result of a job that prints its id and its token and exits with `code`.
fn marked(result: &Value, code: u8, ran: &BTreeMap<&str, Ran>) -> Result<(), String> {
    let status = if code == 0 { "succeeded" } else { "failed" };
    if result["status"] != status || result["exit_code"] != code {
        return Err(format!("should have {status} with {code}"));
    }
    let printed = String::from_utf8_lossy(&data(&result["stdout"])).into_owned();
    let id = result["job_id"].as_str().unwrap_or_default();
    let token = printed.strip_prefix(id).and_then(|rest| rest.trim_start().strip_suffix('\n'));
    match token.and_then(|token| ran.get(token)) {
        Some(ran) if ran.ended => Ok(()),
        Some(_) => Err("its run never came to its end".into()),
        None => Err("printed something else than a run of its own".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::support::broker::STARTED;

    fn books(ids: &[&str]) -> Books {
        let mut books = Books::default();
        for id in ids {
            books.attempted(id, Expect::Marked(0));
            books.confirmed(id);
        }
        books
    }

    fn result(id: &str, attempt: u64, token: &str, code: u8) -> Vec<u8> {
        let status = if code == 0 { "succeeded" } else { "failed" };
        let stdout = json!({"text": format!("{id} {token}\n")});
        let result =
            json!({"job_id": id, "attempt": attempt, "status": status, "exit_code": code, "stdout": stdout});
        result.to_string().into_bytes()
    }

    #[test]
    fn a_good_run_and_a_job_that_ran_twice() {
        let mut books = books(&["a", "b", "c"]);
        books.reply(RESULT, result("a", 1, "x", 0));
        books.reply(RESULT, result("a", 1, "x", 0));
        books.reply(STARTED, json!({"job_id": "b", "attempt": 1}).to_string().into_bytes());
        books.reply(RESULT, result("b", 2, "z", 0));
        books.reply(RESULT, result("c", 1, "u", 0));
        books.reply(RESULT, result("c", 2, "v", 0));
        let c = "c u begin\nc u end\nc v begin\nc v end\n";
        let tally = books.close(&format!("a x begin\na x end\nb y begin\nb z begin\nb z end\n{c}"));
        assert_eq!((tally.lost, tally.unexpected), (vec![], vec![]));
        assert_eq!((tally.confirmed, tally.completed), (3, 3));
        assert_eq!((tally.duplicated, tally.second_results), (BTreeMap::from([(vec![1, 2], 2)]), 1));
    }

    #[test]
    fn nothing_wrong_goes_unnoticed() {
        let unexpected = |replies: &[Vec<u8>], marks: &str| {
            let mut books = books(&["a"]);
            replies.iter().for_each(|reply| books.reply(RESULT, reply.clone()));
            books.close(marks).unexpected.join("; ")
        };
        let once = "a x begin\na x end\n";
        let twice = "a x begin\na x end\na y begin\na y end\n";
        assert_eq!(unexpected(&[result("a", 1, "x", 0)], once), "");
        assert!(unexpected(&[result("a", 1, "x", 3)], once).contains("should have succeeded"));
        assert!(unexpected(&[result("a", 1, "y", 0)], once).contains("something else"));
        assert!(unexpected(&[result("a", 1, "x", 0)], "a x begin\n").contains("never came to its end"));
        assert!(unexpected(&[result("b", 1, "x", 0)], once).contains("never sent"));
        assert!(unexpected(&[result("a", 1, "x", 0)], twice).contains("ran 2 times"));
        let same = [result("a", 1, "x", 0), result("a", 1, "y", 0)];
        assert!(unexpected(&same, twice).contains("2 different results of attempt 1"));
        assert!(unexpected(&same, twice).contains("2 runs are attempt 1"));
        let differ = [result("a", 1, "x", 0), result("a", 2, "y", 0)];
        assert_eq!(unexpected(&differ, twice), "");
        assert_eq!(books(&["a", "b"]).close("").lost, ["a", "b"]);
    }

    #[test]
    fn an_error_has_a_dead_letter() {
        let error =
            json!({"job_id": "a", "attempt": 4, "status": "error", "error": {}}).to_string().into_bytes();
        let mut books = books(&["a"]);
        books.reply(RESULT, error);
        assert!(books.close("").unexpected[0].contains("no dead letter"));
        books.dead("a", "why".into());
        let tally = books.close("");
        assert_eq!((tally.dead, tally.completed, tally.unexpected.len(), tally.lost.len()), (1, 0, 0, 0));
    }
}
