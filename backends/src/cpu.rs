//! Binding one-CPU machines to one host CPU each.
//!
//! A UML system call is a handover between two host processes. On one CPU it costs 9 µs; where the
//! scheduler spreads them over idle CPUs it costs 50–60 µs. So a machine is bound to one CPU, and
//! machines must not pile up on the same one: each holds a *slot*, an abstract Unix socket name
//! (unix(7)) that only one process of a network namespace can have and that ends with its holder.

use std::os::fd::OwnedFd;

use nix::sched::{sched_getaffinity, CpuSet};
use nix::sys::socket::{bind, socket, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::unistd::Pid;

/// A host CPU and the right to use it, which the machine's process must inherit.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The CPU's number.
    pub(crate) cpu: usize,
    /// The socket that holds the slot.
    pub(crate) holder: OwnedFd,
}

/// Machines on one CPU before binding makes no sense any more.
const DEEPEST: usize = 64;

/// Takes a slot on the CPU, among those this process may use, with the fewest machines. `None`
/// when there is nothing to choose or nothing can be learned.
pub(crate) fn take() -> Option<Slot> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .collect();
    if cpus.len() < 2 {
        return None;
    }
    let offset = std::process::id() as usize % cpus.len();
    (0..DEEPEST).find_map(|depth| {
        let (before, after) = cpus.split_at(offset);
        after.iter().chain(before).find_map(|&cpu| hold(cpu, depth))
    })
}

fn hold(cpu: usize, depth: usize) -> Option<Slot> {
    let holder = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    let name = format!("apppot/cpu/{cpu}/{depth}");
    let address = UnixAddr::new_abstract(name.as_bytes()).ok()?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&holder), &address).ok()?;
    Some(Slot { cpu, holder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_spread_over_the_cpus() {
        let Some(first) = take() else {
            eprintln!("skipped: this process may use one CPU only");
            return;
        };
        let second = take().unwrap();
        let third = take().unwrap();
        assert!(
            first.cpu != second.cpu || second.cpu != third.cpu,
            "three slots on CPU {}",
            first.cpu
        );
    }
}
