//! The boot, from the kernel's hand-over to power-off.

use std::path::Path;

use apppot_contract::{Boot, Contract, Report};

use crate::failure::{Failure, Step};
use crate::link::Link;
use crate::{
    accounts, changes, channels, clock, defaults, hostname, job, modules, mounts, network,
    own_root, shutdown, sources, sudo, system,
};

/// Runs the whole life of the machine.
pub(crate) fn run() -> ! {
    let mut link = None;
    let report = live(&mut link).unwrap_or_else(|failure| Report::of(failure.outcome()));
    shutdown::end(link, &report)
}

/// Everything up to the report. The link is the caller's, so that a failure can be reported too.
fn live(link: &mut Option<Link>) -> Result<Report, Failure> {
    mounts::early().step("mounting /proc and /dev")?;
    // The link may need one of them; without the link nobody would learn what is wrong with another.
    let loaded = modules::load_all(Path::new("/modules"));
    clock::set();
    let Some(mut contract) = find_contract(link)? else {
        tell(loaded);
        return Err(boot_as_usual());
    };
    match contract.root {
        Some(_) => loaded?,
        None => {
            tell(loaded);
            contract.root = Some(own_root::find(Path::new("/"))?);
        }
    }
    mounts::root(contract.root.as_ref())?;
    changes::merge_all(&contract, Path::new(mounts::ROOT))?;
    mounts::system().step("mounting the system directories")?;
    mounts::tools().step("making apppot-snap known")?;
    mounts::enter_root().step("entering the root filesystem")?;
    hostname::set(Path::new("/"), &contract)?;
    if contract.boot == Boot::System {
        return Err(hand_over(&contract, link));
    }
    let image = defaults::read(Path::new("/"), &mut contract)?;
    // Before the host's directories are there: the account is the appliance's own affair.
    let identity = accounts::become_known(Path::new("/"), &contract)?;
    let _sudo = sudo::allow(Path::new("/"), &identity, &contract)?;
    let Some(link) = link else {
        return Err(Failure::new(
            "starting the job",
            "the contract names no link",
        ));
    };
    let mut files = channels::receive(&contract, link)?;
    let kept = mounts::shares(&contract)?;
    network::set_up(contract.network.as_ref())?;
    if let Some(files) = &mut files {
        files.remember()?;
    }
    let report = job::run(&contract, image.as_ref(), &identity, link)?;
    Ok(job::saved(report, kept, files, link))
}

/// Boots a machine that nobody has a job for, as any initramfs would. Back here when that has failed.
fn boot_as_usual() -> Failure {
    let prepare = || {
        mounts::root(Some(&own_root::find(Path::new("/"))?))?;
        mounts::system().step("mounting the system directories")?;
        mounts::enter_root().step("entering the root filesystem")
    };
    match prepare() {
        Ok(()) => system::become_init(),
        Err(failure) => failure,
    }
}

/// An image's own initramfs has the drivers of all machines: one that fails may be of no use on this one.
fn tell(loaded: Result<(), Failure>) {
    if let Err(failure) = loaded {
        eprintln!("apppot-init: {}: {}", failure.step, failure.reason);
    }
}

/// Becomes the image's init, which the service then speaks for. Back here when that has failed.
fn hand_over(contract: &Contract, link: &mut Option<Link>) -> Failure {
    let failure = system::hand_over(contract, link.is_some());
    if link.is_none() {
        *link = contract
            .link
            .as_deref()
            .and_then(|device| Link::open(device).ok());
    }
    failure
}

/// The contract, if there is one, and the link when the contract or its carrier names one.
fn find_contract(link: &mut Option<Link>) -> Result<Option<Contract>, Failure> {
    let root = Path::new("/");
    let mut found = sources::command_line(root).step("reading the boot arguments")?;
    if found == sources::Found::Absent {
        // The image's own boot loader has started us: its disks come up first.
        mounts::sysfs().step("mounting /sys")?;
        let _ = own_root::find(root);
        found = sources::documents(root).step("reading the contract")?;
    }
    let mut open = |device: &Path| -> Result<(), Failure> {
        let opened = Link::open(device).step(format!("opening the link {}", device.display()))?;
        *link = Some(opened);
        Ok(())
    };
    match found {
        sources::Found::Contract(contract) => {
            // The service says hello when the system is up.
            if let Some(device) = contract
                .link
                .as_ref()
                .filter(|_| contract.boot == Boot::Direct)
            {
                open(device)?;
            }
            Ok(Some(*contract))
        }
        sources::Found::OnLink(device) => {
            open(&device)?;
            let received = link.as_mut().map_or_else(
                || Err(String::from("there is no link")),
                Link::receive_contract,
            );
            received.step("receiving the contract").map(Some)
        }
        // The service that is installed in the image finds it again, and there is a network then.
        sources::Found::Elsewhere(_) | sources::Found::Absent => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apppot_contract::Outcome;

    #[test]
    fn a_failed_step_becomes_the_outcome() {
        let failure = Err::<(), _>("no such device").step("mounting the root filesystem");
        assert_eq!(
            failure.unwrap_err().outcome(),
            Outcome::Failed {
                step: String::from("mounting the root filesystem"),
                reason: String::from("no such device"),
            }
        );
    }
}
