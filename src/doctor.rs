//! `apppot doctor`: what this machine offers, what that means, what to do.

#[cfg(feature = "libvirt")]
mod libvirt;
mod qemu;

use std::io::IsTerminal;
use std::path::Path;

use apppot_backends::uml::kernel::{Has, Kernel};
use apppot_backends::{containment, limits, user_network};
use serde::Serialize;

use crate::config::Config;
use crate::signature::Demand;
use crate::snap::kept::Kept;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Good,
    /// Works, with a drawback.
    Fair,
    /// Nothing runs.
    Bad,
}

/// One line.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    /// What it means for the user, unless all is well.
    consequence: Option<String>,
    /// What to do about it.
    remedy: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Check {
            name,
            state: State::Good,
            found: found.into(),
            consequence: None,
            remedy: None,
        }
    }

    fn but(self, state: State, consequence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check {
            state,
            consequence: Some(consequence.into()),
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// Checks and prints. The exit status: 1 when no backend can run.
pub(crate) fn run(config: &Config, as_json: bool) -> u8 {
    let checks = checks(config);
    if as_json {
        crate::failure::print_out(&format!(
            "{}\n",
            serde_json::to_string_pretty(&checks).unwrap_or_default()
        ));
    } else {
        checks.iter().for_each(print);
        crate::failure::print_out(&format!("\n{}\n", verdict(&checks)));
    }
    u8::from(obstacles(&checks).count() > 0)
}

fn obstacles(checks: &[Check]) -> impl Iterator<Item = &Check> {
    checks.iter().filter(|check| check.state == State::Bad)
}

/// All of it in one line.
fn verdict(checks: &[Check]) -> String {
    let names: Vec<&str> = obstacles(checks).map(|check| check.name).collect();
    match names.is_empty() {
        true => String::from("this machine can run AppPot"),
        false => format!("this machine cannot run AppPot yet: {}", names.join(", ")),
    }
}

fn checks(config: &Config) -> Vec<Check> {
    let kernel = config.kernel.value.as_deref();
    let mut backends = [uml(kernel), qemu::checks(kernel)];
    let is_bad = |checks: &[Check]| checks.iter().any(|check| check.state == State::Bad);
    if backends.iter().any(|checks| !is_bad(checks)) {
        // One is enough.
        for check in backends.iter_mut().flatten() {
            check.state = check.state.min(State::Fair);
        }
    }
    let mut checks: Vec<Check> = backends.into_iter().flatten().collect();
    #[cfg(feature = "libvirt")]
    checks.extend(libvirt::checks(
        config.connect.value.as_deref(),
        &appliance(config),
        &std::env::current_dir().unwrap_or_default(),
    ));
    checks.extend([
        memory_backing(),
        address_space(),
        cgroup(),
        map_count(),
        landlock(),
        network(),
        disk(),
    ]);
    checks.extend(kept());
    checks.extend(Demand::of(config).map(|demand| signatures(&demand, config)));
    checks
}

/// What a configuration demands is as much an obstacle as what is missing.
fn signatures(demand: &Demand, config: &Config) -> Check {
    let check = Check::good("signatures", demand.says());
    match demand.check_kernel(config) {
        Ok(()) => check,
        Err(error) => check.but(
            State::Bad,
            error.to_string(),
            crate::failure::hint(&error).unwrap_or_default(),
        ),
    }
}

/// Where the appliance is.
#[cfg(feature = "libvirt")]
fn appliance(config: &Config) -> std::path::PathBuf {
    match config.image.value.to_str() {
        Some("host") => std::path::PathBuf::from("/"),
        _ => crate::image::store::resolve(&config.image.value),
    }
}

fn uml(kernel: Option<&Path>) -> Vec<Check> {
    match Kernel::find(kernel) {
        Ok(kernel) => vec![
            found(&kernel),
            seccomp(&kernel),
            smp(&kernel),
            overlay(&kernel),
        ],
        Err(error) => {
            let hint = error.hint().unwrap_or_default();
            vec![Check::good("uml kernel", error.to_string()).but(
                State::Bad,
                "no appliance can run with User-Mode Linux",
                hint,
            )]
        }
    }
}

fn found(kernel: &Kernel) -> Check {
    let check = Check::good(
        "uml kernel",
        format!("{} ({})", kernel.path.display(), kernel.release),
    );
    match kernel.is_ours() {
        true => check,
        false => check.but(
            State::Fair,
            "it boots in about 1.3 s, AppPot's own in a twentieth of that",
            "build AppPot's kernel with 'make kernel'",
        ),
    }
}

fn seccomp(kernel: &Kernel) -> Check {
    match kernel.has_seccomp() {
        true => Check::good("seccomp mode", "supported by the kernel"),
        false => Check::good(
            "seccomp mode",
            "not supported by the kernel (6.16 and later have it)",
        )
        .but(
            State::Fair,
            "system calls in the guest take about twice as long",
            "build AppPot's kernel with 'make kernel'",
        ),
    }
}

fn smp(kernel: &Kernel) -> Check {
    match kernel.has_smp() {
        true => Check::good("several cpus", "supported by the kernel"),
        false => Check::good("several cpus", "not supported by the kernel").but(
            State::Fair,
            "--cpus above 1 is refused",
            "build AppPot's kernel with 'make kernel'",
        ),
    }
}

fn overlay(kernel: &Kernel) -> Check {
    let name = "overlay";
    match (kernel.has("OVERLAY_FS"), kernel.modules()) {
        (Has::BuiltIn, _) => Check::good(name, "built into the kernel"),
        (Has::Module, Some(directory)) => {
            Check::good(name, format!("module in {}", directory.display()))
        }
        (Has::Module, None) => Check::good(
            name,
            "a module, but the kernel's module directory is missing",
        )
        .but(
            State::Bad,
            "images can only be run with --write or --overlay FILE",
            format!(
                "install the modules of {} to /usr/lib/uml/modules",
                kernel.release
            ),
        ),
        (Has::No, _) => Check::good(name, "the kernel has none").but(
            State::Bad,
            "images can only be run with --write or --overlay FILE",
            "use another kernel",
        ),
    }
}

fn memory_backing() -> Check {
    let name = "guest memory";
    let (fit, unfit) = limits::backings();
    let Some(best) = fit
        .iter()
        .max_by_key(|backing| (backing.is_memory, backing.free))
    else {
        let reasons: Vec<String> = unfit
            .iter()
            .map(|place| format!("{}: {}", place.path.display(), place.reason))
            .collect();
        return Check::good(name, reasons.join("; ")).but(
            State::Bad,
            "the guest's memory has no place",
            "set TMPDIR to a directory on a local filesystem that is not mounted noexec",
        );
    };
    let check = Check::good(
        name,
        format!("{} ({} MiB free)", best.path.display(), best.free >> 20),
    );
    match best.is_memory {
        true => check,
        false => check.but(
            State::Fair,
            "it is on a disk, which has to write back what the guest changes",
            "ask the administrator for a /dev/shm that is large enough and not mounted noexec",
        ),
    }
}

fn address_space() -> Check {
    use nix::sys::resource::{getrlimit, Resource, RLIM_INFINITY};
    let name = "address space";
    match getrlimit(Resource::RLIMIT_AS) {
        Ok((RLIM_INFINITY, _)) => Check::good(name, "not limited"),
        Ok((limit, _)) => Check::good(name, format!("limited to {} MiB (RLIMIT_AS)", limit >> 20))
            .but(
                State::Fair,
                "machines with more memory than that are refused",
                "raise it with 'ulimit -v unlimited', or ask the batch system for more memory",
            ),
        Err(errno) => Check::good(name, format!("unknown: {errno}")),
    }
}

fn cgroup() -> Check {
    match limits::cgroup_memory() {
        None => Check::good("cgroup memory", "not limited"),
        Some((limit, path)) => Check::good(
            "cgroup memory",
            format!("{} MiB ({})", limit >> 20, path.display()),
        ),
    }
}

fn map_count() -> Check {
    const ENOUGH: u64 = 262_144;
    let name = "max_map_count";
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    match text.trim().parse::<u64>() {
        Ok(count) if count >= ENOUGH => Check::good(name, count.to_string()),
        Ok(count) => Check::good(name, count.to_string()).but(
            State::Fair,
            format!(
                "with a kernel that is not AppPot's own, a process that touches more than {} MiB in random order dies",
                (count * 4096) >> 20
            ),
            "use AppPot's kernel ('make kernel'), or ask the administrator for vm.max_map_count=1048576",
        ),
        Err(_) => Check::good(name, "unknown"),
    }
}

fn landlock() -> Check {
    match containment::landlock_abi() {
        0 => Check::good("containment", "the host's kernel has no Landlock").but(
            State::Fair,
            "root of a guest reaches whatever its user reaches",
            "use a host kernel from 5.13 on, with 'landlock' in its lsm= list",
        ),
        abi => match containment::attributes::obstacle() {
            None => Check::good("containment", format!("Landlock, ABI {abi}")),
            Some(obstacle) => Check::good(
                "containment",
                format!("Landlock, ABI {abi}, without supervision of modes and times: {obstacle}"),
            )
            .but(
                State::Fair,
                "root of a guest can change modes and times of its user's files (not read or write them)",
                "use a host kernel from 5.0 on with kernel.yama.ptrace_scope at most 1",
            ),
        },
    }
}

fn network() -> Check {
    match user_network() {
        Ok(program) => Check::good("user network", program),
        Err(error) => Check::good("user network", error.to_string()).but(
            State::Fair,
            "--network user does not work",
            error.hint().unwrap_or_default(),
        ),
    }
}

fn disk() -> Check {
    let here = std::env::current_dir().unwrap_or_default();
    match nix::sys::statvfs::statvfs(&here) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let check = Check::good(
                "free disk",
                format!("{} MiB in {}", free >> 20, here.display()),
            );
            match free < 100 << 20 {
                true => check.but(
                    State::Fair,
                    "the job's results may not fit",
                    "free some space, or run in another directory",
                ),
                false => check,
            }
        }
        Err(errno) => Check::good("free disk", format!("unknown: {errno}")),
    }
}

/// What the launcher keeps by itself.
fn kept() -> Option<Check> {
    let kept = Kept::find()?;
    let (count, bytes, directory) = kept.summary();
    let found = format!(
        "{count} with large changes, {} MiB in {}",
        bytes >> 20,
        directory.display()
    );
    (count > 0).then(|| Check::good("kept images", found))
}

fn print(check: &Check) {
    let (sign, colour) = match check.state {
        State::Good => ("ok  ", "32"),
        State::Fair => ("note", "33"),
        State::Bad => ("FAIL", "31"),
    };
    let sign = match std::io::stdout().is_terminal() {
        true => format!("\x1b[{colour}m{sign}\x1b[0m"),
        false => sign.to_owned(),
    };
    crate::failure::print_out(&format!("{sign} {:<14} {}\n", check.name, check.found));
    if let Some(consequence) = &check.consequence {
        crate::failure::print_out(&format!("     {:<14} {consequence}\n", ""));
    }
    if let Some(remedy) = &check.remedy {
        crate::failure::print_out(&format!("     {:<14} -> {remedy}\n", ""));
    }
}
