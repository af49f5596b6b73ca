//! `apppot cloud ls`: the jobs that there are, by the tags of their machines and by what is stored of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use apppot_cloud::{Instance, S3};
use apppot_contract::{Outcome, Report};
use serde_json::{json, Value};

use super::manage::Manager;
use super::objects::{Objects, Record, ROOT};
use super::{BUCKET_TAG, DEADLINE_TAG, JOB_TAG};
use crate::cli::General;
use crate::failure::{print_out, warn};
use crate::run;

/// A line of the list.
struct Row {
    job: String,
    state: String,
    instance: Option<String>,
    deadline: String,
    started_by: String,
    command: String,
}

impl Manager {
    /// Prints a line for each job.
    pub(super) fn list(&self, general: &General) -> Result<u8> {
        let rows = self.rows()?;
        if general.json {
            let rows: Vec<Value> = rows.iter().map(Row::to_json).collect();
            print_out(&format!("{:#}\n", Value::from(rows)));
            return Ok(0);
        }
        let head = [
            "JOB",
            "STATE",
            "MACHINE",
            "ENDS BY",
            "STARTED BY",
            "COMMAND",
        ]
        .map(String::from);
        let lines: Vec<[String; 6]> = rows.iter().map(Row::cells).collect();
        let all: Vec<&[String; 6]> = std::iter::once(&head).chain(&lines).collect();
        let width = |at: usize| all.iter().map(|cells| cells[at].chars().count()).max();
        let widths: Vec<usize> = (0..head.len()).filter_map(width).collect();
        for cells in all.iter().filter(|_| !lines.is_empty()) {
            let cells = cells.iter().zip(&widths);
            let line: String = cells
                .map(|(cell, width)| format!("{cell:<width$}  "))
                .collect();
            print_out(&format!("{}\n", line.trim_end()));
        }
        Ok(0)
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let usual = self.named.as_ref().or(self.usual.as_ref());
        let mut machines = BTreeMap::new();
        for machine in self.machines()? {
            let bucket = machine.tag(BUCKET_TAG).or(usual.map(String::as_str));
            if let (Some(job), Some(bucket)) = (machine.tag(JOB_TAG), bucket) {
                machines.insert((job.to_owned(), bucket.to_owned()), machine);
            }
        }
        let mut stored = BTreeSet::new();
        if let Some(bucket) = usual {
            let objects = match S3::new(&self.cloud, bucket)?.list(ROOT) {
                Ok(objects) => objects,
                Err(error) if machines.is_empty() => return Err(error.into()),
                // Machines cost something, whatever is wrong with the bucket.
                Err(error) => {
                    warn(&format!("jobs without a machine are not listed: {error}"));
                    Vec::new()
                }
            };
            for object in objects {
                let rest = object.key.strip_prefix(ROOT).unwrap_or_default();
                let job = rest.split_once('/').map(|(job, _)| job.to_owned());
                stored.extend(job.map(|job| (job, bucket.clone())));
            }
        }
        let jobs: BTreeSet<(String, String)> = machines.keys().cloned().chain(stored).collect();
        let jobs = jobs.iter().filter(|(job, _)| run::check_id(job).is_ok());
        Ok(jobs.map(|key| self.row(key, machines.get(key))).collect())
    }

    fn row(&self, (job, bucket): &(String, String), machine: Option<&Instance>) -> Row {
        let stored = || -> Result<(Option<Record>, Option<Vec<u8>>)> {
            let objects = Objects::new(&self.cloud, bucket, job)?;
            Ok((objects.record()?, objects.report()?))
        };
        // One bucket that is somebody else's, or gone, hides no other job.
        let (record, report) = stored().unwrap_or_else(|error| {
            warn(&format!("job '{job}': {error:#}"));
            (None, None)
        });
        let report = report.and_then(|text| Report::decode(&text).ok());
        let state = match (&report, machine) {
            (Some(report), _) => words(&report.outcome),
            (None, Some(machine)) => machine.state.clone(),
            (None, None) => String::from("lost"),
        };
        let of_record = |get: fn(&Record) -> String| record.as_ref().map(get);
        let tag = |key: &str| machine.and_then(|one| one.tag(key)).map(str::to_owned);
        let clean =
            |text: String| crate::outcome::printable(text.as_bytes()).replace(['\n', '\t'], " ");
        Row {
            job: job.to_owned(),
            state,
            instance: machine.map(|one| one.id.clone()),
            deadline: clean(
                tag(DEADLINE_TAG)
                    .or_else(|| of_record(|it| it.deadline.clone()))
                    .unwrap_or_default(),
            ),
            started_by: clean(
                tag("apppot:started-by")
                    .or_else(|| of_record(|it| it.started_by.clone()))
                    .unwrap_or_default(),
            ),
            command: clean(of_record(|it| it.command.join(" ")).unwrap_or_default()),
        }
    }
}

/// How a job ended, in a word or two.
fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited { status } => format!("exited {status}"),
        Outcome::Signalled { signal } => format!("signalled {signal}"),
        Outcome::TimedOut => String::from("timed out"),
        Outcome::NotFound { .. } => String::from("not found"),
        Outcome::NotExecutable { .. } => String::from("not executable"),
        Outcome::Failed { .. } => String::from("failed"),
    }
}

impl Row {
    fn cells(&self) -> [String; 6] {
        [
            self.job.clone(),
            self.state.clone(),
            self.instance.clone().unwrap_or_else(|| String::from("-")),
            self.deadline.clone(),
            self.started_by.clone(),
            self.command.clone(),
        ]
    }

    fn to_json(&self) -> Value {
        json!({
            "job": self.job,
            "state": self.state,
            "instance": self.instance,
            "ends-by": self.deadline,
            "started-by": self.started_by,
            "command": self.command,
        })
    }
}
