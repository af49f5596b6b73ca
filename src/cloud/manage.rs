//! `apppot cloud`: jobs by their tags and objects, from any process on any host.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use apppot_cloud::{iso_time, Config as Cloud, Ec2, Instance};
use apppot_contract::Report;
use apppot_snapshot::transfer::Limits;
use serde_json::json;

use super::args::{Bucket, CloudCommand, Which};
use super::launch::{wait_for_silence, LAST_WORDS};
use super::objects::{self, Objects, Position, Record, REPORT};
use super::watch::{MANY, UNKNOWN};
use super::{BUCKET_TAG, DEADLINE_TAG, JOB_TAG};
use crate::caller::JobDirectory;
use crate::cli::General;
use crate::failure::{hinted, print, print_out, say, warn};
use crate::outcome::Ending;
use crate::run;
use crate::staging::{Staging, Wishes};

/// Between two looks.
const POLL: Duration = Duration::from_secs(2);
/// Looks at the machine, one in so many at its objects.
const RARELY: u32 = 5;

/// `apppot cloud`.
///
/// # Errors
/// There is no such job, or the cloud cannot be asked.
pub(crate) fn command(command: &CloudCommand, general: &General) -> Result<u8> {
    match command {
        CloudCommand::Ls(bucket) => Manager::new(bucket)?.list(general),
        CloudCommand::Reap { jobs, bucket } => Manager::new(bucket)?.reap(jobs, general),
        CloudCommand::Wait(which) => Manager::new(&which.bucket)?.find(which)?.wait(general),
        CloudCommand::Logs { which, follow } => {
            Manager::new(&which.bucket)?.find(which)?.logs(*follow)
        }
        CloudCommand::Fetch {
            which,
            workdir,
            limits,
            keep,
        } => {
            let jobdir = JobDirectory::find(workdir.as_deref())?;
            let job = Manager::new(&which.bucket)?.find(which)?;
            job.fetch(&jobdir, limits.limits(), *keep, general)
        }
    }
}

pub(super) struct Manager {
    pub(super) cloud: Cloud,
    pub(super) ec2: Ec2,
    /// The bucket that was asked for.
    pub(super) named: Option<String>,
    /// The one of the configuration.
    pub(super) usual: Option<String>,
}

/// A job of which something is there.
struct Found {
    ec2: Ec2,
    id: String,
    bucket: String,
    objects: Objects,
}

impl Manager {
    fn new(bucket: &Bucket) -> Result<Self> {
        let cloud = super::configuration()?;
        Ok(Manager {
            ec2: Ec2::new(&cloud)?,
            cloud,
            named: bucket.name.clone(),
            usual: crate::here()?.ec2_bucket.value,
        })
    }

    /// Every machine of ours that has not ended.
    pub(super) fn machines(&self) -> Result<Vec<Instance>> {
        let mut all = self.ec2.instances("tag-key", JOB_TAG)?;
        all.retain(|one| one.state != "terminated");
        Ok(all)
    }

    /// A job's machines, and the bucket with what it has stored. Ids are chosen by people: what another bucket has
    /// of the same name is somebody else's.
    fn locate(&self, job: &str) -> Result<(Vec<Instance>, String)> {
        // It goes into filters, in which some characters have a meaning, and into names.
        run::check_id(job)?;
        let mut machines = self.ec2.instances(&format!("tag:{JOB_TAG}"), job)?;
        machines.sort_by_key(Instance::has_ended);
        let tagged: Vec<&str> = machines
            .iter()
            .filter_map(|one| one.tag(BUCKET_TAG))
            .collect();
        let usual = self.usual.as_deref().into_iter();
        let candidates: Vec<&str> = match &self.named {
            Some(named) => vec![named],
            None => usual.chain(tagged.iter().copied()).collect(),
        };
        let has_stored = |bucket: &&&str| {
            let objects = Objects::new(&self.cloud, bucket, job);
            objects.is_ok_and(|objects| objects.list().is_ok_and(|sizes| !sizes.is_empty()))
        };
        let bucket = match &candidates[..] {
            [] => None,
            [only] => Some(only),
            several => several.iter().find(has_stored).or(tagged.first()),
        };
        let bucket = bucket.map(|&bucket| bucket.to_owned()).ok_or_else(|| {
            hinted(
                format!("nobody knows where job '{job}' is stored"),
                "name its bucket with --ec2-bucket, or as ec2-bucket in the configuration",
            )
        })?;
        machines.retain(|one| is_of(one, &bucket));
        Ok((machines, bucket))
    }

    fn find(self, which: &Which) -> Result<Found> {
        let (_, bucket) = self.locate(&which.job)?;
        let objects = Objects::new(&self.cloud, &bucket, &which.job)?;
        if objects.list()?.is_empty() {
            return Err(hinted(
                format!("there is no job '{}'", which.job),
                "'apppot cloud ls' lists those that there are; what was fetched is deleted",
            ));
        }
        Ok(Found {
            ec2: self.ec2,
            id: which.job.clone(),
            bucket,
            objects,
        })
    }

    /// Ends jobs, or without names all machines that should have ended. One that cannot be ended keeps none of
    /// the others.
    fn reap(&self, jobs: &[String], general: &General) -> Result<u8> {
        let mut failures = Vec::new();
        for job in jobs {
            match self.reap_job(job) {
                Ok(instance) => print_reaped(job, instance.as_deref(), general),
                Err(error) => failures.push(error),
            }
        }
        let overdue = match jobs.is_empty() {
            true => self.overdue()?,
            false => Vec::new(),
        };
        for machine in overdue {
            let job = machine.tag(JOB_TAG).unwrap_or_default();
            match self.ec2.terminate(&[&machine.id]) {
                Ok(()) => print_reaped(job, Some(&machine.id), general),
                Err(error) => failures.push(
                    anyhow::Error::from(error)
                        .context(format!("cannot end machine {}", machine.id)),
                ),
            }
        }
        let last = failures.pop();
        failures.iter().for_each(|error| print(error, general.json));
        last.map_or(Ok(0), Err)
    }

    /// Machines that should have ended by themselves.
    fn overdue(&self) -> Result<Vec<Instance>> {
        let now = iso_time(SystemTime::now());
        // Times of that form compare as their texts do; another form is none of ours.
        let is_past = |deadline: &str| deadline.len() == now.len() && deadline < &now[..];
        let mut machines = self.machines()?;
        machines.retain(|machine| machine.tag(DEADLINE_TAG).is_some_and(is_past));
        Ok(machines)
    }

    /// Ends a job's machine, and deletes what is stored of it. The machine, when there was one.
    fn reap_job(&self, job: &str) -> Result<Option<String>> {
        let (machines, bucket) = self.locate(job)?;
        let objects = Objects::new(&self.cloud, &bucket, job)?;
        if machines.is_empty() && objects.list()?.is_empty() {
            return Err(hinted(
                format!("there is no job '{job}'"),
                "'apppot cloud ls' lists those that there are",
            ));
        }
        let running = machines.iter().filter(|one| one.state != "terminated");
        let running: Vec<&str> = running.map(|one| &one.id[..]).collect();
        if !running.is_empty() {
            self.ec2.terminate(&running)?;
            let patience = Instant::now() + LAST_WORDS;
            wait_for_silence(&self.ec2, &running, &|| Instant::now() >= patience);
        }
        objects.delete()?;
        Ok(running.first().map(|&id| id.to_owned()))
    }
}

/// Whether the machine's job may be stored in that bucket.
fn is_of(machine: &Instance, bucket: &str) -> bool {
    machine.tag(BUCKET_TAG).is_none_or(|tag| tag == bucket)
}

fn print_reaped(job: &str, instance: Option<&str>, general: &General) {
    match general.json {
        true => print_out(&format!(
            "{}\n",
            json!({ "job": job, "instance": instance })
        )),
        false => print_out(&format!("{job}  {}\n", instance.unwrap_or("no machine"))),
    }
}

/// What is borne of a cloud that does not answer.
#[derive(Default)]
struct Patience {
    /// How many times in a row.
    troubles: u32,
}

impl Patience {
    /// An answer of the cloud's; `None` when it may come later.
    fn bear<T>(&mut self, answer: apppot_cloud::Result<T>) -> apppot_cloud::Result<Option<T>> {
        match answer {
            Err(error) if error.passes() => {
                self.troubles += 1;
                if self.troubles == MANY {
                    warn(&format!("{error}; it is asked again"));
                }
                Ok(None)
            }
            answer => {
                self.troubles = 0;
                answer.map(Some)
            }
        }
    }
}

impl Found {
    /// Until there is a report, or can be none; `seen` is called with each look.
    fn until_report(&self, seen: &mut dyn FnMut(&mut Patience) -> Result<()>) -> Result<Ending> {
        let mut patience = Patience::default();
        for look in 0u32.. {
            let asks = look % RARELY == 0;
            let is_running = !asks || patience.bear(self.is_running())?.unwrap_or(true);
            seen(&mut patience)?;
            match patience.bear(self.objects.report())? {
                Some(Some(text)) => {
                    // What was stored before the report.
                    seen(&mut patience)?;
                    return Ok(Ending::Reported(
                        Report::decode(&text).context("the job's report is none")?,
                    ));
                }
                // What the machine has stored before its end is there.
                Some(None) if !is_running => break,
                _ => {}
            }
            std::thread::sleep(POLL);
        }
        let lost = crate::outcome::Lost::new("the machine ended without a report");
        Ok(Ending::Lost(lost))
    }

    /// Whether the machine has not ended.
    fn is_running(&self) -> apppot_cloud::Result<bool> {
        let mut machines = self.ec2.instances(&format!("tag:{JOB_TAG}"), &self.id)?;
        machines.retain(|one| is_of(one, &self.bucket));
        if machines.is_empty() {
            return self.is_new();
        }
        Ok(machines.iter().any(|one| !one.has_ended()))
    }

    /// Whether the cloud may not know the machine yet.
    fn is_new(&self) -> apppot_cloud::Result<bool> {
        let known = iso_time(SystemTime::now() - UNKNOWN);
        // Times of that form compare as their texts do.
        let is_new = |record: Record| record.started.len() == known.len() && record.started > known;
        Ok(self.objects.record()?.is_some_and(is_new))
    }

    fn wait(&self, general: &General) -> Result<u8> {
        let ending = self.until_report(&mut |_| Ok(()))?;
        if let Some(error) = ending.error() {
            print(&error, general.json);
        }
        Ok(ending.exit_status())
    }

    fn logs(&self, follow: bool) -> Result<u8> {
        let mut at = [Position::default(); 2];
        if follow {
            self.until_report(&mut |patience| Ok(patience.bear(self.show(&mut at)?).map(drop)?))?;
        }
        // What could not be read before.
        self.show(&mut at)??;
        Ok(0)
    }

    /// Writes what there is of the job's output from these places on.
    fn show(&self, at: &mut [Position; 2]) -> Result<apppot_cloud::Result<()>> {
        for (at, stream) in at.iter_mut().zip(["stdout", "stderr"]) {
            loop {
                let piece = match at.read(&self.objects, stream, 1 << 20) {
                    Ok(Some(piece)) => piece,
                    Ok(None) => break,
                    Err(error) => return Ok(Err(error)),
                };
                let written = match stream {
                    "stdout" => std::io::stdout()
                        .write_all(&piece)
                        .and_then(|()| std::io::stdout().flush()),
                    _ => std::io::stderr().write_all(&piece),
                };
                written.context("the job's output cannot be written")?;
            }
        }
        Ok(Ok(()))
    }

    fn fetch(
        &self,
        jobdir: &JobDirectory,
        limits: Limits,
        keep: bool,
        general: &General,
    ) -> Result<u8> {
        let sizes = self.objects.list()?;
        if !sizes.contains_key(REPORT) && self.is_running()? {
            return Err(hinted(
                format!("job '{}' has not ended", self.id),
                format!(
                    "'apppot cloud wait {0}' waits for that; 'apppot cloud reap {0}' ends it",
                    self.id
                ),
            ));
        }
        // Between the list and the machine's end it may have stored more.
        let sizes = self.objects.list()?;
        if objects::has(&sizes, "results") {
            let wishes = Wishes {
                channel: None,
                input: Vec::new(),
                output: Vec::new(),
                limits,
                sync_deletes: false,
                shown: !general.quiet,
            };
            let staging = Staging::results_only(jobdir.real.clone(), &self.id, wishes)?;
            let received = staging.receive(self.objects.results(&|| true)?);
            match received.failure {
                None => {}
                // There will not be more of them.
                Some(failure) if received.ended_early && !sizes.contains_key(REPORT) => {
                    warn(&failure);
                }
                Some(failure) => {
                    return Err(hinted(failure, "they are still there: fetch them again")
                        .context("not all of the job's results came back"));
                }
            }
        } else if !general.quiet {
            say("the job has left no results");
        }
        if !keep {
            self.objects.delete()?;
        }
        Ok(0)
    }
}
