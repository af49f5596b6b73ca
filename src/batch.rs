//! What the batch system allows: memory and CPUs of this job.

use crate::config::{Origin, Values};
use crate::units::{Cpus, Size};

/// Memory of a job that the machine's own processes need beside the guest's memory.
const OWN_MEMORY: u64 = 64 << 20;

/// A batch system, as a job of it knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum System {
    Slurm,
    Pbs,
    GridEngine,
    Condor,
    Lsf,
}

impl System {
    /// Each with variables that it sets in a job, and only there: a login shell of a Grid Engine
    /// site has SGE_ROOT, and JOB_ID alone could be anybody's.
    const MARKS: [(System, &'static [&'static str]); 5] = [
        (System::Slurm, &["SLURM_JOB_ID"]),
        (System::Pbs, &["PBS_JOBID"]),
        (System::GridEngine, &["JOB_ID", "SGE_TASK_ID"]),
        (System::Condor, &["_CONDOR_JOB_AD"]),
        (System::Lsf, &["LSB_JOBID"]),
    ];

    /// The one that this process runs under.
    fn find(is_set: impl Fn(&str) -> bool) -> Option<Self> {
        let found = Self::MARKS
            .iter()
            .find(|(_, marks)| marks.iter().all(|mark| is_set(mark)));
        found.map(|(system, _)| *system)
    }
}

/// Whether this process is part of a batch job.
pub(crate) fn is_job() -> bool {
    System::find(|name| std::env::var_os(name).is_some()).is_some()
}

/// The grant of the batch system that this process runs under, a layer a variable.
pub(crate) fn grant() -> Vec<(Origin, Values)> {
    grant_from(|name| std::env::var(name).ok())
}

fn grant_from(variable: impl Fn(&str) -> Option<String>) -> Vec<(Origin, Values)> {
    let number = |name: &str| -> Option<u64> { variable(name)?.trim().parse().ok() };
    let granted = |name| number(name).and_then(|cpus| processors(name, cpus));
    let mut layers = Vec::new();
    match System::find(|name| variable(name).is_some()) {
        Some(System::Slurm) => {
            let all_cpus = number("SLURM_CPUS_ON_NODE").or(number("SLURM_CPUS_PER_TASK"));
            let whole = number("SLURM_MEM_PER_NODE").map(|mib| ("SLURM_MEM_PER_NODE", mib));
            let each = number("SLURM_MEM_PER_CPU").map(|mib| {
                (
                    "SLURM_MEM_PER_CPU",
                    mib.saturating_mul(all_cpus.unwrap_or(1)),
                )
            });
            layers.extend(whole.or(each).and_then(|(name, mib)| memory(name, mib)));
            layers.extend(granted("SLURM_CPUS_PER_TASK"));
        }
        Some(System::Pbs) => layers.extend(granted("NCPUS")),
        Some(System::GridEngine) => layers.extend(granted("NSLOTS")),
        Some(System::Condor | System::Lsf) | None => {}
    }
    layers
}

/// 0 means "all of the node" to Slurm: no grant to go by.
fn memory(name: &'static str, mib: u64) -> Option<(Origin, Values)> {
    let bytes = mib.saturating_mul(1 << 20).saturating_sub(OWN_MEMORY);
    (mib > 0).then(|| {
        let values = Values {
            memory: Some(Size(bytes)),
            ..Values::default()
        };
        (Origin::Batch(name), values)
    })
}

fn processors(name: &'static str, cpus: u64) -> Option<(Origin, Values)> {
    let cpus = u32::try_from(cpus).ok().filter(|&cpus| cpus > 0)?;
    let values = Values {
        cpus: Some(Cpus(cpus)),
        ..Values::default()
    };
    Some((Origin::Batch(name), values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(variables: &[(&str, &str)]) -> (Option<u64>, Option<u32>) {
        let layers = grant_from(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        let memory = layers.iter().find_map(|(_, values)| values.memory);
        let cpus = layers.iter().find_map(|(_, values)| values.cpus);
        let memory = memory.map(|size| (size.0 + OWN_MEMORY) >> 20);
        (memory, cpus.map(|cpus| cpus.0))
    }

    #[test]
    fn grants_are_read_per_batch_system() {
        assert_eq!(granted(&[]), (None, None));
        assert_eq!(granted(&[("SLURM_MEM_PER_NODE", "512")]), (None, None));
        assert_eq!(
            granted(&[
                ("SLURM_JOB_ID", "1"),
                ("SLURM_MEM_PER_NODE", "512"),
                ("SLURM_CPUS_PER_TASK", "2")
            ]),
            (Some(512), Some(2))
        );
        assert_eq!(
            granted(&[
                ("SLURM_JOB_ID", "1"),
                ("SLURM_MEM_PER_CPU", "100"),
                ("SLURM_CPUS_ON_NODE", "4")
            ]),
            (Some(400), None)
        );
        assert_eq!(
            granted(&[("SLURM_JOB_ID", "1"), ("SLURM_MEM_PER_NODE", "0")]),
            (None, None)
        );
        assert_eq!(
            granted(&[("PBS_JOBID", "1"), ("NCPUS", "3")]),
            (None, Some(3))
        );
        assert_eq!(
            granted(&[
                ("JOB_ID", "1"),
                ("SGE_TASK_ID", "undefined"),
                ("NSLOTS", "2")
            ]),
            (None, Some(2))
        );
    }

    #[test]
    fn a_login_shell_of_a_site_is_no_job() {
        let system = |set: &[&str]| System::find(|name| set.contains(&name));
        assert_eq!(system(&["SGE_ROOT", "SGE_CELL"]), None);
        assert_eq!(system(&["JOB_ID"]), None);
        let job = ["JOB_ID", "SGE_TASK_ID", "SGE_ROOT"];
        assert_eq!(system(&job), Some(System::GridEngine));
        assert_eq!(system(&["LSB_JOBID"]), Some(System::Lsf));
    }
}
