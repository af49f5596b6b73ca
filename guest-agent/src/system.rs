//! `boot=system`: the image's own init is PID 1, and the agent one of its services.
//!
//! As PID 1 the agent prepares the root and leaves itself, the contract and a service behind in
//! `/run`, then becomes the init. The service does the rest once the system is up.
//!
//! An image that boots by itself has the agent and the same service installed (`--layout disk`). It asks
//! for a contract when nobody has left one, also where the image's initramfs is not the agent. Without a
//! contract it does nothing.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use apppot_contract::store::SAVING;
use apppot_contract::{document, Contract, Report};
use nix::mount::{mount, MsFlags};

use crate::courier::{Courier, Errand};
use crate::failure::{Failure, Step};
use crate::link::Link;
use crate::once::{Before, Record};
use crate::{
    accounts, channels, defaults, growth, hostname, job, metadata, mounts, network, shutdown,
    sources, sudo, uplink, watchdog,
};

/// The agent's own directory, in memory.
const DIRECTORY: &str = "/run/apppot";
/// What the service is called with.
pub(crate) const SERVICE: &str = "--service";

const UNIT: &str = "\
[Unit]
Description=AppPot job
After=basic.target network.target systemd-user-sessions.service

[Service]
Type=idle
ExecStart=/run/apppot/agent --service
KillMode=process
";

/// Becomes the image's init. `greeted`: hello has been said on the link. Returns only when that
/// fails.
pub(crate) fn hand_over(contract: &Contract, greeted: bool) -> Failure {
    match leave_behind(contract, greeted) {
        Ok(()) => become_init(),
        Err(error) => Failure::new(HAND_OVER, error),
    }
}

const HAND_OVER: &str = "handing over to the image's own init";

fn leave_behind(contract: &Contract, greeted: bool) -> io::Result<()> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory)?;
    // System V's init lets nothing in /run be executed.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let memory = Some("tmpfs");
    mount(memory, directory, memory, flags, Some("mode=0700"))?;
    // The initramfs is out of reach now, but for this.
    fs::copy("/proc/self/exe", directory.join("agent"))?;
    fs::set_permissions(directory.join("agent"), fs::Permissions::from_mode(0o755))?;
    fs::write(directory.join("contract"), document::encode(contract))?;
    if greeted {
        fs::write(directory.join("greeted"), "")?;
    }
    add_unit(contract)?;
    add_to_inittab(Path::new("/etc/inittab"))
}

/// A service of systemd, at run time only (systemd.unit(5)).
fn add_unit(contract: &Contract) -> io::Result<()> {
    let units = Path::new("/run/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    fs::write(units.join("apppot.service"), UNIT)?;
    symlink("../apppot.service", wanted.join("apppot.service"))?;
    // A login prompt on the link would read the launcher's frames.
    if let Some(line) = contract.link.as_deref().and_then(Path::file_name) {
        let getty = format!("serial-getty@{}.service", line.to_string_lossy());
        symlink("/dev/null", units.join(getty))?;
    }
    Ok(())
}

/// An entry of inittab(5), for System V's init and busybox's, where there is such a file.
fn add_to_inittab(path: &Path) -> io::Result<()> {
    let Ok(table) = fs::read_to_string(path) else {
        return Ok(());
    };
    let busybox = fs::canonicalize("/sbin/init")
        .is_ok_and(|init| init.file_name().is_some_and(|name| name == "busybox"));
    let entry = inittab_entry(busybox);
    if table.lines().any(|line| line == entry) {
        return Ok(());
    }
    let newline = if table.ends_with('\n') { "" } else { "\n" };
    fs::write(path, format!("{table}{newline}{entry}\n"))
}

fn inittab_entry(busybox: bool) -> String {
    match busybox {
        true => format!("::once:{DIRECTORY}/agent {SERVICE}"),
        false => format!("ap:2345:once:{DIRECTORY}/agent {SERVICE}"),
    }
}

/// Becomes the image's init. Returns only when that fails.
pub(crate) fn become_init() -> Failure {
    Failure::new(HAND_OVER, execute_init())
}

fn execute_init() -> io::Error {
    let found = [
        "/sbin/init",
        "/usr/lib/systemd/systemd",
        "/etc/init",
        "/bin/init",
    ]
    .into_iter()
    .find(|path| Path::new(path).exists());
    let Some(init) = found else {
        return io::Error::other("the image has no init (/sbin/init)");
    };
    let path = match CString::new(init) {
        Ok(path) => path,
        Err(error) => return error.into(),
    };
    let Err(errno) = nix::unistd::execve(&path, &[&path], &[c"HOME=/", c"TERM=linux"]);
    io::Error::new(io::Error::from(errno).kind(), format!("{init}: {errno}"))
}

/// The service: runs the job in the booted system, and powers it off. Without a job the system stays.
pub(crate) fn serve() -> ! {
    let mut ends = Ends::default();
    match growth::root() {
        Ok(true) => eprintln!("apppot-init: the root filesystem now is as large as its disk"),
        Ok(false) => {}
        Err(error) => eprintln!("apppot-init: cannot grow the root filesystem: {error}"),
    }
    let report = match live(&mut ends) {
        Ok(None) => std::process::exit(0),
        Ok(Some(report)) => report,
        Err(failure) => Report::of(failure.outcome()),
    };
    shutdown::detach_shares();
    shutdown::report(ends.link, &report);
    if let Some(courier) = ends.courier {
        courier.wait();
    }
    if let Some(record) = ends.record {
        record.end();
    }
    // The init's own way, which ends its services; else the kernel's.
    if !Command::new("poweroff")
        .status()
        .is_ok_and(|status| status.success())
    {
        shutdown::power_off();
    }
    std::process::exit(0)
}

/// What must be dealt with when the job has ended, or could not be started.
#[derive(Default)]
struct Ends {
    link: Option<Link>,
    courier: Option<Courier>,
    leash: Option<watchdog::Leash>,
    record: Option<Record>,
}

/// The contract that was left behind or, in a system that another initramfs has started, is to be found; or
/// where it is.
fn find_contract() -> Result<sources::Found, Failure> {
    let path = PathBuf::from(DIRECTORY).join("contract");
    let step = "reading the contract";
    if let Ok(text) = fs::read(&path) {
        let _ = fs::remove_file(&path);
        return sources::understood(&text, "what was left behind").step(step);
    }
    // It was left behind, and another service has had it.
    if Path::new(DIRECTORY).exists() {
        return Ok(sources::Found::Absent);
    }
    let root = Path::new("/");
    let mut found = sources::command_line(root).step(step)?;
    if found == sources::Found::Absent {
        found = sources::documents(root).step(step)?;
    }
    if found == sources::Found::Absent {
        found = sources::user_data(root).step(step)?;
    }
    match found {
        sources::Found::Contract(contract) if !contract.changes.is_empty() => Err(Failure::new(
            "merging the changes",
            "the image's initramfs is not AppPot's, and now its system is running",
        )),
        sources::Found::OnLink(device) => Err(Failure::new(
            step,
            format!(
                "it comes over {}, which is for the initramfs",
                device.display()
            ),
        )),
        found => Ok(found),
    }
}

/// Opens the way to the launcher. The contract, which may come that way.
fn connect(found: sources::Found, ends: &mut Ends) -> Result<Option<Contract>, Failure> {
    let contract = match found {
        sources::Found::Contract(contract) => contract,
        sources::Found::Elsewhere(pointer) => {
            let document = document::encode_pointer(&pointer);
            send_for(&document, pointer.deadline, pointer.grace, ends)?;
            let received = match &mut ends.link {
                Some(link) => link.receive_contract(),
                None => Err(String::from("there is no link")),
            };
            return received.step("receiving the contract").map(Some);
        }
        // The last has been refused.
        sources::Found::Absent | sources::Found::OnLink(_) => return Ok(None),
    };
    match contract.deadline {
        Some(deadline) if !contract.store.is_empty() => {
            let document = document::encode(&contract);
            send_for(&document, deadline, contract.grace, ends)?;
        }
        _ => {
            let device = contract.link.as_deref();
            let device = device
                .ok_or_else(|| Failure::new("starting the job", "the contract names no link"))?;
            let greeted = Path::new(DIRECTORY).join("greeted").exists();
            let opened = match greeted {
                true => Link::reopen(device),
                false => Link::open(device),
            };
            let opened = opened.step(format!("opening the link {}", device.display()))?;
            ends.link = Some(opened);
        }
    }
    Ok(Some(*contract))
}

/// Starts the courier for the job of that document. From here on the machine ends in time, whatever happens.
///
/// # Errors
/// It cannot be started; or the job has begun before this boot: then there is a courier for the report.
fn send_for(
    document: &str,
    deadline: SystemTime,
    grace: Duration,
    ends: &mut Ends,
) -> Result<(), Failure> {
    let step = "starting the courier";
    let end = grace
        .checked_add(SAVING)
        .and_then(|later| deadline.checked_add(later));
    let leash = end.map(watchdog::start).transpose().step(step)?;
    ends.leash = leash;
    let root = Path::new("/");
    // Ids are chosen by people, who may choose one twice; deadlines and signatures make each document another.
    let record = Record::of(root, document);
    let before = record.begin();
    if before == Before::Ended {
        return Err(Failure::new("starting the job", "it has ended before"));
    }
    ends.record = Some(record);
    uplink::wait_for(root);
    let services = match metadata::cloud(root) {
        Some(metadata::Cloud::Ec2) => metadata::Cloud::Ec2.addresses(),
        _ => Vec::new(),
    };
    let errand = match before {
        Before::Begun => Errand::Report,
        _ => Errand::Job,
    };
    let (courier, link) = Courier::start(document, errand, &services).step(step)?;
    ends.courier = Some(courier);
    ends.link = Some(link);
    match errand {
        Errand::Job => Ok(()),
        Errand::Report => Err(Failure::new(
            "starting the job",
            "the machine was started again while the job ran: something in it, or the cloud, has rebooted it, or \
             its kernel has panicked",
        )),
    }
}

/// The report; `None` when there is no contract.
fn live(ends: &mut Ends) -> Result<Option<Report>, Failure> {
    let found = find_contract()?;
    let Some(mut contract) = connect(found, ends)? else {
        return Ok(None);
    };
    let Some(link) = &mut ends.link else {
        return Err(Failure::new("starting the job", "there is no link"));
    };
    hostname::make_own_known(Path::new("/"), &contract).step("writing /etc/hosts")?;
    let image = defaults::read(Path::new("/"), &mut contract)?;
    let identity = accounts::become_known(Path::new("/"), &contract)?;
    let _sudo = sudo::allow(Path::new("/"), &identity, &contract)?;
    let mut files = channels::receive(&contract, link)?;
    let kept = mounts::shares(&contract)?;
    network::set_up(contract.network.as_ref())?;
    if let Some(files) = &mut files {
        files.remember()?;
    }
    let report = job::run(&contract, image.as_ref(), &identity, link)?;
    Ok(Some(job::saved(report, kept, files, link)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inittab_gets_its_entry_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inittab");
        add_to_inittab(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "id:2:initdefault:").unwrap();
        add_to_inittab(&path).unwrap();
        add_to_inittab(&path).unwrap();
        let table = fs::read_to_string(&path).unwrap();
        assert_eq!(table.matches("agent --service").count(), 1, "{table}");
        assert!(table.starts_with("id:2:initdefault:\n"));
    }
}
