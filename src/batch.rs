//! What the batch system allows: memory and CPUs of this job.

use crate::config::{Origin, Values};
use crate::units::Size;

/// Memory of a job that the machine's own processes need beside the guest's memory.
const OWN_MEMORY: u64 = 64 << 20;

/// The grant of the batch system that this process runs under, a layer a variable.
pub(crate) fn grant() -> Vec<(Origin, Values)> {
    grant_from(|name| std::env::var(name).ok())
}

/// Whether this process is part of a batch job.
pub(crate) fn is_job() -> bool {
    [
        "SLURM_JOB_ID",
        "PBS_JOBID",
        "SGE_ROOT",
        "_CONDOR_JOB_AD",
        "LSB_JOBID",
    ]
    .iter()
    .any(|name| std::env::var_os(name).is_some())
}

fn grant_from(variable: impl Fn(&str) -> Option<String>) -> Vec<(Origin, Values)> {
    let number = |name: &str| -> Option<u64> { variable(name)?.trim().parse().ok() };
    let mut layers = Vec::new();
    if variable("SLURM_JOB_ID").is_some() {
        let cpus = number("SLURM_CPUS_PER_TASK");
        let all_cpus = number("SLURM_CPUS_ON_NODE").or(cpus).unwrap_or(1);
        let whole = number("SLURM_MEM_PER_NODE").map(|mib| ("SLURM_MEM_PER_NODE", mib));
        let each = number("SLURM_MEM_PER_CPU").map(|mib| ("SLURM_MEM_PER_CPU", mib * all_cpus));
        layers.extend(whole.or(each).and_then(|(name, mib)| memory(name, mib)));
        layers.extend(cpus.and_then(|cpus| processors("SLURM_CPUS_PER_TASK", cpus)));
    } else if variable("PBS_JOBID").is_some() {
        layers.extend(number("NCPUS").and_then(|cpus| processors("NCPUS", cpus)));
    } else if variable("JOB_ID").is_some() && variable("SGE_ROOT").is_some() {
        layers.extend(number("NSLOTS").and_then(|cpus| processors("NSLOTS", cpus)));
    }
    layers
}

/// 0 means "all of the node" to Slurm: no grant to go by.
fn memory(name: &'static str, mib: u64) -> Option<(Origin, Values)> {
    let bytes = (mib << 20).saturating_sub(OWN_MEMORY);
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
        cpus: Some(cpus),
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
        (memory.map(|size| (size.0 + OWN_MEMORY) >> 20), cpus)
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
            granted(&[("JOB_ID", "1"), ("SGE_ROOT", "/s"), ("NSLOTS", "2")]),
            (None, Some(2))
        );
    }
}
