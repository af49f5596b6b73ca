//! Rounds: in each one every candidate has its turn, so that whatever drifts on the machine (its
//! clock rate, its caches, other people's work) hits all of them alike. Ratios are taken within a
//! round and then summarised.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::stats::Summary;

/// What a candidate reads in one turn: values by name.
pub(crate) type Readings = Vec<(&'static str, f64)>;

/// The reading of candidates that have only one.
pub(crate) const WALL: &str = "wall";

/// CPU time, which other people's work changes least.
pub(crate) const CPU: &str = "cpu";

/// Something that is measured beside others.
pub(crate) trait Candidate {
    /// Its name in the results.
    fn name(&self) -> String;

    /// One turn.
    ///
    /// # Errors
    /// It did not do what it should.
    fn turn(&mut self) -> Result<Readings>;
}

/// How often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Rounds whose readings do not count.
    pub(crate) warm_up: usize,
    /// Rounds whose readings count.
    pub(crate) rounds: usize,
    /// A candidate that takes longer sits out two rounds of three.
    pub(crate) patience: Duration,
}

impl Plan {
    /// So many rounds after one to warm up, in which everybody takes part.
    pub(crate) fn rounds(rounds: usize) -> Self {
        Plan {
            warm_up: 1,
            rounds,
            patience: Duration::MAX,
        }
    }
}

/// A candidate's readings.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// Its name.
    pub(crate) name: String,
    /// By reading and round; `None`: it sat out, or failed.
    pub(crate) readings: BTreeMap<&'static str, Vec<Option<f64>>>,
    /// Turns that failed after the warm-up.
    pub(crate) failures: usize,
    /// What the last failure was.
    pub(crate) error: Option<String>,
}

/// Everybody's readings.
#[derive(Debug, Default)]
pub(crate) struct Race {
    /// In the order of the candidates.
    pub(crate) lanes: Vec<Lane>,
}

impl Race {
    /// Runs `candidates` side by side. One that fails while warming up is out.
    pub(crate) fn run(mut candidates: Vec<Box<dyn Candidate>>, plan: Plan) -> Self {
        let mut lanes: Vec<Lane> = candidates.iter().map(|it| Lane::named(it.name())).collect();
        let mut slow = vec![false; candidates.len()];
        for round in 0..plan.warm_up + plan.rounds {
            let counted = round.checked_sub(plan.warm_up);
            for place in 0..candidates.len() {
                // Nobody always follows the same one.
                let index = (place + round) % candidates.len();
                let sits_out = slow[index] && counted.is_some_and(|round| round % 3 != 0);
                if lanes[index].is_out() || sits_out {
                    continue;
                }
                let start = Instant::now();
                let outcome = candidates[index].turn();
                slow[index] = start.elapsed() > plan.patience;
                lanes[index].note(counted, outcome);
            }
        }
        Race { lanes }
    }

    /// The lane of `name`.
    pub(crate) fn lane(&self, name: &str) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.name == name)
    }

    /// The summary of a reading.
    pub(crate) fn summary(&self, name: &str, reading: &str) -> Option<Summary> {
        self.lane(name)?.summary(reading)
    }

    /// How many times `base`'s reading `name`'s is, round by round.
    pub(crate) fn ratio(&self, name: &str, base: &str, reading: &str) -> Option<Summary> {
        let (above, below) = (
            self.lane(name)?.readings.get(reading)?,
            self.lane(base)?.readings.get(reading)?,
        );
        let pairs = above.iter().zip(below);
        Summary::of(pairs.filter_map(|(above, below)| Some((*above)? / (*below)?)))
    }

    /// What could not be measured, and why.
    pub(crate) fn missing(&self) -> Vec<String> {
        let failed = |lane: &Lane| {
            let error = lane.error.as_ref()?;
            Some(match lane.is_out() {
                true => format!("{}: {error}", lane.name),
                false => format!("{}: {} turns failed: {error}", lane.name, lane.failures),
            })
        };
        self.lanes.iter().filter_map(failed).collect()
    }
}

impl Lane {
    fn named(name: String) -> Self {
        Lane {
            name,
            ..Lane::default()
        }
    }

    /// It failed before anything was counted.
    fn is_out(&self) -> bool {
        self.error.is_some() && self.failures == 0
    }

    /// Keeps the outcome of a turn in round `counted`; `None`: a warm-up.
    fn note(&mut self, counted: Option<usize>, outcome: Result<Readings>) {
        match (outcome, counted) {
            (Ok(readings), Some(round)) => {
                for (name, value) in readings {
                    let values = self.readings.entry(name).or_default();
                    values.resize(round, None);
                    values.push(Some(value));
                }
            }
            (Ok(_), None) => {}
            (Err(error), counted) => {
                self.failures += usize::from(counted.is_some());
                self.error = Some(format!("{error:#}"));
            }
        }
    }

    /// The summary of a reading.
    pub(crate) fn summary(&self, reading: &str) -> Option<Summary> {
        Summary::of(self.readings.get(reading)?.iter().filter_map(|x| *x))
    }
}
