//! A job on a machine of a cloud, from its plan to its end.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use apppot_cloud::{Config as Cloud, Ec2, Instance};
use apppot_contract::Workload;
use serde_json::json;

use super::objects::{self, Objects, DOCUMENT, RECORD};
use super::plan::Plan;
use super::watch::{Watch, Watched, POLL};
use super::{show, BACKEND, BUCKET_TAG, JOB_TAG};
use crate::caller::JobDirectory;
use crate::cli::{General, MachineArgs};
use crate::config::Config;
use crate::failure::{hinted, print_out, warn};
use crate::outcome::{check_report, Ending};
use crate::progress::Progress;
use crate::run;
use crate::session::{console, ends_the_job, Ended, Signals};

/// How long the end of a machine may take that has been asked to.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(60);

/// Runs `workload` on a machine of a cloud, and returns the exit status.
///
/// # Errors
/// The machine cannot be started, or the cloud cannot be asked any more.
pub(crate) fn run(
    args: &MachineArgs,
    config: Config,
    jobdir: &JobDirectory,
    workload: Workload,
    started: Instant,
    general: &General,
) -> Result<u8> {
    let plan = Plan::new(args, config, jobdir, workload, started, general)?;
    let objects = Objects::new(&plan.cloud, &plan.bucket, &plan.id)?;
    if args.dry_run {
        return show::dry_run(&plan, &objects, general);
    }
    if let Some(path) = &args.report {
        check_report(path)?;
    }
    show::warn_of_credentials(&plan);
    // Before there is a machine that somebody waits for.
    let price = (general.verbose > 0).then(|| show::price(&plan));
    let launch = Launch {
        ec2: Ec2::new(&plan.cloud)?,
        signals: RefCell::new(Signals::take().context("cannot receive signals")?),
        asked: Cell::new(None),
        plan: &plan,
        objects: &objects,
        general,
    };
    let cannot = || format!("cannot start a machine of '{}'", plan.image);
    let ending = match launch.start().with_context(cannot)? {
        Ok(instance) => {
            if let Some(price) = price {
                show::describe(&plan, &objects, &instance, &price);
            }
            if launch.is_asked() && args.ec2.detach {
                // Nobody has been told of a job. The cloud may not yet list the machine.
                launch.end(&instance);
                launch.undo();
                let asked = launch.asked.get().unwrap_or(libc::SIGTERM);
                let ending = Ending::Stopped(asked);
                return conclude(args, general, &plan, Some(&instance.id), started, ending);
            }
            if args.ec2.detach {
                // With the time of the machine's start, from which on the cloud is to know it.
                if let Err(error) = objects.put(RECORD, &serde_json::to_vec(&plan.record())?) {
                    warn(&format!("the job's start could not be noted: {error}"));
                }
                show_job(&plan, &instance, general);
                return Ok(0);
            }
            let ending = launch.attend(&instance)?;
            return conclude(args, general, &plan, Some(&instance.id), started, ending);
        }
        Err(ending) => ending,
    };
    conclude(args, general, &plan, None, started, ending)
}

fn conclude(
    args: &MachineArgs,
    general: &General,
    plan: &Plan,
    instance: Option<&str>,
    started: Instant,
    ending: Ending,
) -> Result<u8> {
    let facts = json!({
        "backend": BACKEND,
        "instance": instance,
        "image": plan.image,
        "type": plan.kind,
        "region": plan.cloud.region,
    });
    let ended = Ended {
        ending,
        boot: None,
        total: started.elapsed(),
    };
    run::conclude(args, general, &plan.id, &facts, &ended)
}

/// What is printed of a job that is left alone.
fn show_job(plan: &Plan, instance: &Instance, general: &General) {
    match general.json {
        true => {
            let value = json!({
                "job": plan.id,
                "instance": instance.id,
                "bucket": plan.bucket,
                "deadline": apppot_cloud::iso_time(plan.deadline),
            });
            print_out(&format!("{value:#}\n"));
        }
        false => print_out(&format!("{}\n", plan.id)),
    }
}

struct Launch<'a> {
    plan: &'a Plan,
    objects: &'a Objects,
    ec2: Ec2,
    signals: RefCell<Signals>,
    /// The signal that asked the launcher to end before there was a machine, or after it.
    asked: Cell<Option<i32>>,
    general: &'a General,
}

impl Launch<'_> {
    /// Starts the machine, or says how it ended before there was one. Then nothing is left of it.
    fn start(&self) -> Result<Result<Instance, Ending>> {
        let taken = self.objects.list()?;
        if !taken.is_empty() {
            return Err(hinted(
                format!("there is a job '{}' already", self.plan.id),
                "give another --id, or none; or 'apppot cloud reap' the old one",
            ));
        }
        let error = match self.upload_and_start() {
            Ok(Some(instance)) => return Ok(Ok(instance)),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        self.undo();
        match (self.asked.get(), error) {
            (Some(signal), _) => Ok(Err(Ending::Stopped(signal))),
            (None, None) => Ok(Err(Ending::TooLate)),
            (None, Some(_)) if SystemTime::now() >= self.plan.deadline => Ok(Err(Ending::TooLate)),
            (None, Some(error)) => Err(error),
        }
    }

    fn goes_on(&self) -> bool {
        !self.is_asked() && SystemTime::now() < self.plan.deadline
    }

    /// Whether the launcher has been asked to end.
    fn is_asked(&self) -> bool {
        while let Some(signal) = self.signals.borrow_mut().next() {
            if ends_the_job(signal) && self.asked.get().is_none() {
                self.asked.set(Some(signal));
            }
        }
        self.asked.get().is_some()
    }

    /// `None` when there is no time left, or somebody wants us to end.
    fn upload_and_start(&self) -> Result<Option<Instance>> {
        let (plan, objects) = (self.plan, self.objects);
        let files = objects::pack(&plan.staging, &|| self.goes_on())?;
        // Whoever writes takes their time, and ends us by the usual signals: see `spool`.
        let stdin = match plan.reads_stdin {
            true => Some(objects::spool(&|| self.goes_on())?),
            false => None,
        };
        let total = [Some(&files), stdin.as_ref()].into_iter().flatten();
        let total = total
            .map(|file| file.metadata().map_or(0, |file| file.len()))
            .sum();
        let shown = !self.general.quiet && !self.general.json;
        let progress = RefCell::new(Progress::start("sending to the cloud", total, shown));
        let goes_on = |bytes: usize| {
            progress.borrow_mut().add(bytes as u64);
            self.goes_on()
        };
        let record = serde_json::to_vec(&plan.record())?;
        objects.put(RECORD, &record)?;
        let files = objects.upload("files", &files, &goes_on)?;
        let stdin = stdin.map(|stdin| objects.upload("stdin", &stdin, &goes_on));
        let stdin = stdin.transpose()?.unwrap_or(0);
        progress.borrow().end();
        let documents = plan.documents(objects, files, stdin)?;
        objects.put(DOCUMENT, documents.contract.as_bytes())?;
        if !self.goes_on() || SystemTime::now() >= plan.deadline {
            return Ok(None);
        }
        let started = plan.with_request(&documents.user_data, |new| self.ec2.run(new))?;
        Ok(Some(started))
    }

    /// Takes back what a launch that came to nothing has left. An answer that was lost may have been that of
    /// a machine.
    fn undo(&self) {
        let machines = self.ec2.instances(&format!("tag:{JOB_TAG}"), &self.plan.id);
        let ended = machines.and_then(|all| {
            // Another bucket's job of this name is somebody else's.
            let ours = all
                .iter()
                .filter(|one| one.tag(BUCKET_TAG) == Some(&self.plan.bucket));
            let ids: Vec<&str> = ours.map(|one| &one.id[..]).collect();
            match ids.is_empty() {
                true => Ok(()),
                false => self.ec2.terminate(&ids),
            }
        });
        for failure in [ended.err(), self.objects.delete().err()]
            .into_iter()
            .flatten()
        {
            warn(&format!(
                "something may be left of the job ({failure}): see 'apppot cloud ls', and 'apppot cloud reap {}'",
                self.plan.id
            ));
        }
    }

    /// Stays with the machine until it has ended, and leaves nothing of it.
    fn attend(&self, instance: &Instance) -> Result<Ending> {
        let watched = self.watch(&self.plan.cloud.hasty(), instance);
        // A machine that has gone may have taken it along.
        let console = match &watched {
            Ok(Watched {
                ending: Ending::Lost(_),
                ..
            }) => self.ec2.console(&instance.id).ok(),
            _ => None,
        };
        let is_gone = self.end(instance);
        let lost_sight = || {
            format!(
                "machine {} cannot be watched any more; 'apppot cloud fetch {}' gets what it has stored",
                instance.id, self.plan.id
            )
        };
        let watched = watched.with_context(lost_sight)?;
        if is_gone && !matches!(watched.ending, Ending::Reported(_)) {
            let patience = Instant::now() + LAST_WORDS;
            let is_enough = || Instant::now() >= patience || self.is_asked();
            wait_for_silence(&self.ec2, &[&instance.id], &is_enough);
        }
        // It goes on with a job whose objects are still wanted.
        let goes_on = !is_gone && !matches!(watched.ending, Ending::Reported(_));
        let (mut ending, keeps) = self
            .take_results(watched.ending, goes_on)
            .with_context(lost_sight)?;
        if let Ending::Lost(lost) = &mut ending {
            // It is for the error text only.
            lost.console = console.map_or(Vec::new(), |text| console::tail(&text));
        }
        for (what, reason) in watched.failures {
            match ending.exit_status() {
                0 => ending = Ending::Lost(crate::outcome::Lost::stream(what, &reason)),
                _ => warn(&format!("{what}: {reason}")),
            }
        }
        if keeps {
            warn(&format!(
                "results are still there: 'apppot cloud fetch {}' gets them",
                self.plan.id
            ));
        } else if let Err(error) = self.objects.delete() {
            warn(&format!("the job's objects are still there: {error}"));
        }
        Ok(ending)
    }

    /// Ends the machine: whether the cloud does.
    fn end(&self, instance: &Instance) -> bool {
        let ended = self.ec2.terminate(&[&instance.id]);
        if let Err(error) = &ended {
            warn(&format!(
                "machine {} may run until {}: {error}",
                instance.id,
                apppot_cloud::iso_time(self.plan.end())
            ));
        }
        ended.is_ok()
    }

    fn watch(&self, hasty: &Cloud, instance: &Instance) -> Result<Watched> {
        let objects = Objects::new(hasty, &self.plan.bucket, &self.plan.id)?;
        let ec2 = Ec2::new(hasty)?;
        let mut signals = self.signals.borrow_mut();
        Watch::new(
            self.plan,
            &objects,
            &ec2,
            &instance.id,
            &mut signals,
            self.general,
        )
        .run()
    }

    /// Puts results into their places, as far as they are there. Whether they are to be kept in the cloud, as
    /// everything is of a machine that goes on with its job.
    fn take_results(&self, ending: Ending, goes_on: bool) -> Result<(Ending, bool)> {
        let sizes = self.objects.list()?;
        if !sizes.keys().any(|name| objects::is_of_machine(name)) {
            // The job had not begun, so that nothing is missing; without its document it cannot.
            return Ok((ending, false));
        }
        if !objects::has(&sizes, "results") {
            let missing = || String::from("the machine has stored none");
            let ending = match ending.has_results() {
                true => ending.without_results(missing()),
                false => ending.without_any_results(),
            };
            return Ok((ending, goes_on));
        }
        // Also those of a job whose time was over.
        let is_wanted = || !self.is_asked();
        let received = self.plan.staging.receive(self.objects.results(&is_wanted)?);
        if let Some(signal) = self.asked.get() {
            return Ok((Ending::Stopped(signal), true));
        }
        let Some(failure) = received.failure else {
            return Ok((ending, goes_on));
        };
        let keeps = goes_on || ending.has_results() || !received.ended_early;
        Ok((ending.without_results(failure), keeps))
    }
}

/// A machine that is being ended may still store something, which would then stay; until it has ended, or somebody
/// has waited enough.
pub(super) fn wait_for_silence(ec2: &Ec2, instances: &[&str], is_enough: &dyn Fn() -> bool) {
    let runs = |instance: &&str| match ec2.instances("instance-id", instance) {
        Ok(found) => found.iter().any(|machine| !machine.has_ended()),
        Err(_) => false,
    };
    while instances.iter().any(runs) && !is_enough() {
        std::thread::sleep(POLL);
    }
}
