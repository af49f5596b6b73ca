//! What is to be started, before anything is.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use apppot_cloud::{iso_time, random, Config as Cloud, NewInstance, LONGEST_VALIDITY};
use apppot_contract::document::{encode, encode_pointer};
use apppot_contract::store::SAVING;
use apppot_contract::{Boot, Channel, Contract, Files, Pointer, Stdin, Workload};

use super::objects::{Objects, Record};
use super::{kinds, BUCKET_TAG, DEADLINE_TAG, JOB_TAG};
use crate::caller::{self, JobDirectory};
use crate::cli::{General, MachineArgs};
use crate::config::{Config, Origin};
use crate::failure::{hinted, say};
use crate::run;
use crate::staging::Staging;
use crate::units;

/// How long a job may take when nobody says: a machine in a cloud costs money until it ends.
const TIME_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// What URLs are good for beyond the machine's end: clocks differ.
const SLACK: Duration = Duration::from_secs(15 * 60);

/// A job, as it is to be.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) cloud: Cloud,
    pub(super) id: String,
    pub(super) image: String,
    pub(super) kind: String,
    pub(super) bucket: String,
    subnet: Option<String>,
    groups: Vec<String>,
    key: Option<String>,
    /// GiB.
    disk: Option<u64>,
    pub(super) is_spot: bool,
    /// Makes a request that is made again the same request.
    token: String,
    /// Without its objects.
    contract: Contract,
    pub(super) staging: Staging,
    pub(super) reads_stdin: bool,
    pub(super) deadline: SystemTime,
    pub(super) grace: Duration,
    tags: Vec<(&'static str, String)>,
    command: Vec<String>,
    started_by: String,
}

/// What RunInstances gets, and what goes into the bucket before.
pub(super) struct Documents {
    /// The contract.
    pub(super) contract: String,
    /// Where that is.
    pub(super) user_data: String,
}

impl Plan {
    /// # Errors
    /// The options do not make a machine, or there is nobody to be for the cloud.
    pub(super) fn new(
        args: &MachineArgs,
        mut config: Config,
        jobdir: &JobDirectory,
        workload: Workload,
        started: Instant,
        general: &General,
    ) -> Result<Self> {
        super::refuse::refuse(args, &config, &workload)?;
        let limit = config
            .time_limit
            .value
            .get_or_insert(units::Duration(TIME_LIMIT));
        let limit = limit.0;
        let cloud = super::configuration()?;
        let bucket = bucket(&config)?;
        let kind = kind(&config)?;
        let lossy = |word: &OsString| word.to_string_lossy().into_owned();
        let command = match &workload {
            Workload::Command(words) => words.iter().map(lossy).collect(),
            _ => Vec::new(),
        };
        let (_, target) = run::shares(args, &config, jobdir, false)?;
        let mut contract = run::contract(args, &config, target.clone(), workload, started)?;
        let reads_stdin = reads_stdin(args, general);
        let id = match &args.id {
            Some(id) => id.clone(),
            None => format!("apppot-{:016x}", random()),
        };
        let wishes = run::asked(args, general);
        contract.id.clone_from(&id);
        contract.boot = Boot::System;
        contract.terminal = None;
        contract.stdin = match reads_stdin {
            true => Stdin::Link,
            false => Stdin::Null,
        };
        contract.files = Some(Files {
            channel: Channel::Link,
            target,
            ring: None,
            results: wishes.output.clone(),
        });
        let deadline = contract
            .deadline
            .unwrap_or_else(|| SystemTime::now() + limit);
        let staging = Staging::gather(jobdir.real.clone(), &id, wishes)?;
        let user = caller::user(None).map_or_else(|| String::from("root"), |user| user.name);
        let host = caller::hostname().unwrap_or_default();
        let mut plan = Plan {
            token: format!("apppot-{:016x}{:016x}", random(), random()),
            cloud,
            id,
            image: config.image.value.display().to_string(),
            kind,
            bucket,
            subnet: config.ec2_subnet.value,
            groups: config.ec2_groups.value,
            key: config.ec2_key.value,
            disk: config.ec2_disk.value.map(|size| size.0.div_ceil(1 << 30)),
            is_spot: config.ec2_spot.value,
            staging,
            reads_stdin,
            deadline,
            grace: contract.grace,
            contract,
            tags: Vec::new(),
            command,
            started_by: format!("{user}@{host}"),
        };
        plan.validity()?;
        plan.tags = plan.make_tags();
        Ok(plan)
    }

    /// When the machine has ended, whatever happens.
    pub(super) fn end(&self) -> SystemTime {
        self.deadline + self.grace + SAVING
    }

    /// For how long URLs must be good.
    fn validity(&self) -> Result<Duration> {
        let end = self.end() + SLACK;
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        match left <= LONGEST_VALIDITY {
            true => Ok(left),
            false => Err(hinted(
                "the time limit is too long: URLs for the machine are good for seven days at most",
                "give a shorter --time-limit, such as 6d: the rest is for what comes after it",
            )),
        }
    }

    fn make_tags(&self) -> Vec<(&'static str, String)> {
        vec![
            ("Name", format!("apppot {}", self.id)),
            (JOB_TAG, self.id.clone()),
            (DEADLINE_TAG, iso_time(self.end())),
            (BUCKET_TAG, self.bucket.clone()),
            ("apppot:image", self.image.clone()),
            ("apppot:started-by", self.started_by.clone()),
        ]
    }

    /// The contract with its objects: so many segments of the job's files and of standard input.
    pub(super) fn documents(
        &self,
        objects: &Objects,
        files: usize,
        stdin: usize,
    ) -> Result<Documents> {
        let valid = self.validity()?;
        let mut contract = self.contract.clone();
        contract.store = objects.urls(files, stdin, valid)?;
        contract.check()?;
        let pointer = Pointer {
            url: objects.document_url(valid)?,
            deadline: self.deadline,
            grace: self.grace,
            report: contract.store.report.clone(),
        };
        Ok(Documents {
            contract: encode(&contract),
            user_data: encode_pointer(&pointer),
        })
    }

    /// Calls `ask` with what RunInstances gets.
    pub(super) fn with_request<T>(
        &self,
        user_data: &str,
        ask: impl FnOnce(&NewInstance<'_>) -> T,
    ) -> T {
        let tags: Vec<(&str, &str)> = self
            .tags
            .iter()
            .map(|(key, value)| (*key, &value[..]))
            .collect();
        ask(&NewInstance {
            image: &self.image,
            kind: &self.kind,
            user_data: user_data.as_bytes(),
            token: &self.token,
            tags: &tags,
            subnet: self.subnet.as_deref(),
            groups: &self.groups,
            key: self.key.as_deref(),
            disk: self.disk,
            is_spot: self.is_spot,
        })
    }

    pub(super) fn record(&self) -> Record {
        Record {
            job: self.id.clone(),
            image: self.image.clone(),
            command: self.command.clone(),
            started_by: self.started_by.clone(),
            started: iso_time(SystemTime::now()),
            deadline: iso_time(self.end()),
        }
    }
}

/// The bucket that the configuration names.
pub(super) fn bucket(config: &Config) -> Result<String> {
    config.ec2_bucket.value.clone().ok_or_else(|| {
        hinted(
            "a job in a cloud needs a bucket, in which it and its launcher meet",
            "name one with --ec2-bucket or as ec2-bucket in the configuration; 'aws s3 mb s3://NAME' makes one",
        )
    })
}

/// The type of machine: as asked for, or the first with the memory and vCPUs that somebody asked for. What a
/// batch system grants is of this host.
fn kind(config: &Config) -> Result<String> {
    if let Some(kind) = &config.ec2_type.value {
        return Ok(kind.clone());
    }
    let is_asked = |origin: &Origin| !matches!(origin, Origin::BuiltIn | Origin::Batch(_));
    let memory = config
        .memory
        .value
        .filter(|_| is_asked(&config.memory.origin));
    let memory = memory.map_or(run::DEFAULT_MEMORY, |size| size.0);
    let cpus = match is_asked(&config.cpus.origin) {
        true => config.cpus.value.0,
        false => 1,
    };
    kinds::choose(memory, cpus).map(str::to_owned)
}

/// Whether there is something to read: not from somebody who types.
fn reads_stdin(args: &MachineArgs, general: &General) -> bool {
    if args.no_stdin || run::is_null() {
        return false;
    }
    let types = std::io::stdin().is_terminal();
    if types && general.verbose > 0 {
        say("standard input is a terminal, which a machine of EC2 does not reach: the command's is empty");
    }
    !types
}
