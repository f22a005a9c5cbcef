//! What is seen while the demonstration runs: one line that is refreshed on a terminal, one line per second elsewhere,
//! and remarks between.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, VecDeque},
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use super::{
    metrics::{Counted, Lag, Tally, parse},
    workers::Worker,
};

/// Between two looks at the workers.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks over which the lag on the line goes.
const LAG_OVER: usize = 5;

/// Standard error.
pub(super) struct Screen {
    terminal: bool,
    /// A line stands there that is to be overwritten.
    open: Cell<bool>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), open: Cell::new(false) }
    }

    /// Something that has happened.
    pub(super) fn note(&self, text: &str) {
        self.wipe();
        eprintln!("demo: {text}");
    }

    /// The state of things; replaces the last one where that is possible.
    fn refresh(&self, line: &str) {
        if self.terminal {
            // Without wrapping (?7l) a narrow terminal shows the beginning, and the next line still replaces it.
            eprint!("\r\x1b[2K\x1b[?7l{line}\x1b[?7h");
            let _ = std::io::stderr().flush();
            self.open.set(true);
        } else {
            eprintln!("demo: {line}");
        }
    }

    fn wipe(&self) {
        if self.open.replace(false) {
            eprint!("\r\x1b[2K");
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// One look, for the differences to later ones.
struct Look {
    at: Instant,
    mutations: u64,
    counted: Counted,
}

/// Watches the workers and keeps their figures, those of a killed one too.
pub(super) struct Board<'a> {
    screen: &'a Screen,
    workers: &'a [Worker],
    tallies: RefCell<Vec<Tally>>,
    looks: RefCell<VecDeque<Look>>,
    began: Instant,
    /// Said at the end of the line.
    phase: RefCell<String>,
    /// Answers must be taken in the order in which they were given, or totals seem to fall.
    scraping: tokio::sync::Mutex<()>,
}

impl<'a> Board<'a> {
    pub(super) fn new(screen: &'a Screen, workers: &'a [Worker]) -> Self {
        Self {
            screen,
            workers,
            tallies: RefCell::new(workers.iter().map(|_| Tally::default()).collect()),
            looks: RefCell::default(),
            began: Instant::now(),
            phase: RefCell::default(),
            scraping: tokio::sync::Mutex::default(),
        }
    }

    /// Something that has happened, with the time.
    pub(super) fn note(&self, text: &str) {
        self.screen.note(&format!("{:>5.1} s  {text}", self.began.elapsed().as_secs_f64()));
    }

    /// What is said at the end of the line from now on.
    pub(super) fn set_phase(&self, text: String) {
        self.phase.replace(text);
    }

    /// Looks once a second, for ever; `mutations` tells how many there are so far.
    ///
    /// # Errors
    /// When a worker has ended by itself.
    pub(super) async fn watch(
        &self,
        mutations: impl Fn() -> u64,
    ) -> anyhow::Result<std::convert::Infallible> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        self.look(mutations());
        loop {
            ticks.tick().await;
            for worker in self.workers {
                worker.check_on_duty()?;
            }
            self.scrape().await;
            self.look(mutations());
            self.screen.refresh(&self.line());
        }
    }

    /// Reads the counters of the workers on duty. A worker that does not answer in time keeps its last ones.
    pub(super) async fn scrape(&self) {
        let _in_order = self.scraping.lock().await;
        self.scrape_now().await;
    }

    /// Kills a worker, right after its counters were read.
    ///
    /// # Errors
    /// When it can't be killed.
    pub(super) async fn kill(&self, worker: &Worker) -> anyhow::Result<()> {
        let _in_order = self.scraping.lock().await;
        self.scrape_now().await;
        worker.kill().await
    }

    async fn scrape_now(&self) {
        let answers = self
            .workers
            .iter()
            .map(async |worker| if worker.is_on_duty() { worker.metrics().await.ok() } else { None });
        let answers = futures::future::join_all(answers).await;
        for (tally, answer) in self.tallies.borrow_mut().iter_mut().zip(answers) {
            if let Some(text) = answer {
                tally.update(parse(&text));
            }
        }
    }

    /// Whether a worker on duty knew this tenant when last asked.
    pub(super) fn is_served(&self, tenant: &str) -> bool {
        self.on_duty().any(|at| self.tallies.borrow()[at].serves(tenant))
    }

    /// What all workers have counted, of one tenant or of all.
    pub(super) fn counted(&self, tenant: Option<&str>) -> Counted {
        let mut total = Counted::default();
        self.tallies.borrow().iter().for_each(|tally| tally.add_to(&mut total, tenant));
        total
    }

    fn on_duty(&self) -> impl Iterator<Item = usize> {
        self.workers.iter().enumerate().filter(|(_, worker)| worker.is_on_duty()).map(|(at, _)| at)
    }

    fn look(&self, mutations: u64) {
        let mut looks = self.looks.borrow_mut();
        looks.push_back(Look { at: Instant::now(), mutations, counted: self.counted(None) });
        if looks.len() > LAG_OVER + 1 {
            looks.pop_front();
        }
    }

    fn line(&self) -> String {
        let looks = self.looks.borrow();
        let (Some(first), Some(now)) = (looks.front(), looks.back()) else { return String::new() };
        let last = looks.iter().rev().nth(1).unwrap_or(now);
        let seconds = (now.at - last.at).as_secs_f64().max(1e-9);
        let per_second = |now: u64, last: u64| (now.saturating_sub(last) as f64 / seconds).round();
        let lag: Lag = now.counted.lag.since(&first.counted.lag);
        let tallies = self.tallies.borrow();
        let tenants: BTreeSet<&str> = self.on_duty().flat_map(|at| tallies[at].tenants()).collect();
        format!(
            "{:>5.1} s  {} mutations {}/s  {} rows {}/s  lag p50 {} p99 {}  {} tenants  {} workers{}",
            self.began.elapsed().as_secs_f64(),
            now.mutations,
            per_second(now.mutations, last.mutations),
            now.counted.rows,
            per_second(now.counted.rows, last.counted.rows),
            duration(lag.quantile(0.5)),
            duration(lag.quantile(0.99)),
            tenants.len(),
            self.on_duty().count(),
            self.phase.borrow(),
        )
    }
}

/// Seconds for people; a dash if there are none.
pub(super) fn duration(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds.is_infinite() => "> 2 min".to_owned(),
        Some(seconds) if seconds >= 1.0 => format!("{seconds:.1} s"),
        Some(seconds) if seconds >= 0.01 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) => format!("{:.1} ms", seconds * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_have_a_fitting_unit() {
        let texts = [None, Some(0.0042), Some(0.0424), Some(2.31), Some(f64::INFINITY)].map(duration);
        assert_eq!(texts, ["-", "4.2 ms", "42 ms", "2.3 s", "> 2 min"]);
    }
}
