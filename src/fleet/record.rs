//! What came of it.

/// Times, counted in classes that are 1 % wide: as many as there may be, in little memory.
#[derive(Clone, Debug, Default)]
pub struct Quantiles {
    classes: Vec<u64>,
    count: u64,
    longest: f64,
}

/// The end of the first class; seconds. What is shorter is no time at all.
const SHORTEST: f64 = 1e-6;
/// Each class ends at so many times the one before.
const WIDTH: f64 = 1.01;

impl Quantiles {
    pub(super) fn add(&mut self, seconds: f64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a few thousand")]
        let class =
            if seconds <= SHORTEST { 0 } else { ((seconds / SHORTEST).ln() / WIDTH.ln()) as usize + 1 };
        if class >= self.classes.len() {
            self.classes.resize(class + 1, 0);
        }
        self.classes[class] += 1;
        self.count += 1;
        self.longest = self.longest.max(seconds);
    }

    /// Seconds that this share of them stays within; 0 if there are none.
    pub fn at(&self, share: f64) -> f64 {
        let wanted = share * self.count as f64;
        let mut counted = 0.0;
        for (class, count) in self.classes.iter().enumerate() {
            counted += *count as f64;
            if *count > 0 && counted >= wanted {
                // The middle of the class.
                let middle = SHORTEST * WIDTH.powf(class as f64 - 0.5);
                return if class == 0 { 0.0 } else { middle.min(self.longest) };
            }
        }
        self.longest
    }

    /// The longest of them, in seconds.
    pub fn longest(&self) -> f64 {
        self.longest
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// What came of a simulation, without what was skipped.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// From the first that counts to the end of the last job.
    pub seconds: f64,
    /// Jobs that were published.
    pub jobs: u64,
    /// Most jobs that were published in any minute.
    pub busiest_minute: u64,
    /// Jobs that ended, with a result each.
    pub finished: u64,
    /// Attempts: one for each job, and one more for each time that a worker which drained had stopped it.
    pub attempts: u64,
    /// Deliveries that a worker which drained handed back before they had begun.
    pub handed_back: u64,
    /// Leases that found a container.
    pub hits: u64,
    /// All leases.
    pub leases: u64,
    /// Seconds from publish to a worker.
    pub queue_wait: Quantiles,
    /// Seconds from a worker to the entrypoint executing.
    pub start_up: Quantiles,
    /// Seconds that the missed ones waited for a container.
    pub miss_wait: Quantiles,
    /// Most jobs that waited in the queue.
    pub longest_queue: usize,
    /// How many of them were there when the last job had been published.
    pub queued_at_end: usize,
    /// Containers × seconds.
    pub starting_seconds: f64,
    /// Containers × seconds.
    pub idle_seconds: f64,
    /// Containers × seconds.
    pub leased_seconds: f64,
    /// Workers × seconds, from the decision that there is to be one until it is gone.
    pub worker_seconds: f64,
    /// Most workers at once.
    pub most_workers: usize,
    /// Workers that came after the beginning.
    pub workers_started: usize,
    /// Workers that drained.
    pub workers_stopped: usize,
}

impl Outcome {
    /// Jobs that ended neither with a result nor wait any more. The simulation's own books: anything but 0 is a fault of it.
    pub fn lost(&self) -> u64 {
        self.jobs - self.finished
    }

    /// The share of leases that found a container; none if there were none.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.leases > 0).then(|| self.hits as f64 / self.leases as f64)
    }

    /// Jobs that ended in a second.
    pub fn throughput(&self) -> f64 {
        if self.seconds > 0.0 { self.finished as f64 / self.seconds } else { 0.0 }
    }

    /// Workers on average.
    pub fn workers(&self) -> f64 {
        if self.seconds > 0.0 { self.worker_seconds / self.seconds } else { 0.0 }
    }
}
