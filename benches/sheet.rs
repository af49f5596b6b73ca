//! Results: sheets, each with a table for people and figures that goals and history are about.

use serde_json::{json, Value};

use crate::rounds::Race;
use crate::stats::{digits, Summary};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Costs.
    Less,
    /// Throughput.
    More,
}

/// A number that is watched from run to run.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// Its name in the history.
    pub(crate) key: String,
    /// What it is, for people.
    pub(crate) title: String,
    /// Its value.
    pub(crate) value: Summary,
    /// Of the value: `×`, `ms`, `MB`, …
    pub(crate) unit: &'static str,
    /// Which way is better.
    pub(crate) better: Better,
    /// What it must at most, or at least, be.
    pub(crate) goal: Option<f64>,
}

impl Figure {
    /// Whether the goal is reached; `None`: there is none.
    pub(crate) fn reached(&self) -> Option<bool> {
        self.goal.map(|goal| match self.better {
            Better::Less => self.value.median <= goal,
            Better::More => self.value.median >= goal,
        })
    }

    /// Whether this is a ratio, which one machine's runs have in common whatever the load.
    pub(crate) fn is_ratio(&self) -> bool {
        self.unit == "×"
    }
}

/// The results of one measure.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    /// Its name in files.
    pub(crate) id: &'static str,
    /// Its title.
    pub(crate) title: String,
    /// What was done, in a sentence or two.
    pub(crate) about: String,
    /// Column heads.
    pub(crate) head: Vec<String>,
    /// Rows of cells.
    pub(crate) rows: Vec<Vec<String>>,
    /// Figures.
    pub(crate) figures: Vec<Figure>,
    /// What could not be measured, and why.
    pub(crate) missing: Vec<String>,
    /// Bars of the chart: name and value.
    pub(crate) bars: Vec<(String, Summary)>,
    /// Every reading.
    pub(crate) races: Vec<(String, Race)>,
}

impl Sheet {
    /// An empty one.
    pub(crate) fn new(id: &'static str, title: &str, about: &str, head: &[&str]) -> Self {
        Sheet {
            id,
            title: title.to_owned(),
            about: about.to_owned(),
            head: head.iter().map(ToString::to_string).collect(),
            ..Sheet::default()
        }
    }

    /// Adds a row.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Adds a figure, if it was measured.
    pub(crate) fn figure(
        &mut self,
        (key, title): (&str, &str),
        value: Option<Summary>,
        (unit, better): (&'static str, Better),
        goal: Option<f64>,
    ) {
        self.figures.extend(value.map(|value| Figure {
            key: format!("{}.{key}", self.id),
            title: title.to_owned(),
            value,
            unit,
            better,
            goal,
        }));
    }

    /// Keeps a race's readings, and what went missing in it.
    pub(crate) fn keep(&mut self, name: impl Into<String>, race: Race) {
        self.missing.extend(race.missing());
        self.races.push((name.into(), race));
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        let figures = self.figures.iter().map(|figure| {
            json!({
                "key": figure.key, "title": figure.title, "unit": figure.unit,
                "median": figure.value.median, "quartiles": [figure.value.low, figure.value.high],
                "samples": figure.value.count, "goal": figure.goal, "reached": figure.reached(),
            })
        });
        let races = self.races.iter().map(|(name, race)| {
            let lanes = race.lanes.iter().map(|lane| {
                json!({ "name": lane.name, "readings": lane.readings, "failures": lane.failures })
            });
            json!({ "name": name, "lanes": lanes.collect::<Vec<_>>() })
        });
        json!({
            "id": self.id, "title": self.title, "about": self.about, "head": self.head,
            "rows": self.rows, "missing": self.missing, "figures": figures.collect::<Vec<_>>(),
            "races": races.collect::<Vec<_>>(),
        })
    }
}

/// Median and quartiles in one cell.
pub(crate) fn cell(summary: Option<Summary>) -> String {
    summary.map_or(String::from("–"), |it| {
        format!(
            "{} ({}–{})",
            digits(it.median),
            digits(it.low),
            digits(it.high)
        )
    })
}

/// Median alone, with a unit.
pub(crate) fn short(summary: Option<Summary>, unit: &str) -> String {
    summary.map_or(String::from("–"), |it| {
        format!("{}{unit}", digits(it.median))
    })
}
