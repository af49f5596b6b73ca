//! What cannot be had: of a cloud's machines, and of others.

use anyhow::Result;
use apppot_contract::Workload;

use super::is_image;
use crate::cli::MachineArgs;
use crate::config::{Config, Origin};
use crate::failure::hinted;

/// Refuses what machines of a cloud have not.
///
/// # Errors
/// The option, and what to do instead.
pub(super) fn refuse(args: &MachineArgs, config: &Config, workload: &Workload) -> Result<()> {
    let image = &config.image.value;
    if !is_image(image) {
        return Err(hinted(
            format!("'{}' is no image of EC2", image.display()),
            "give the id that 'apppot image publish ec2 IMAGE' prints: --image ami-…",
        ));
    }
    if *workload == Workload::Shell {
        return Err(hinted(
            "a machine of EC2 has no terminal here, so there is no shell",
            "name a command: apppot run --backend ec2 … -- COMMAND",
        ));
    }
    if config.require_signature.value {
        return Err(hinted(
            format!(
                "'{}' requires signatures, and an image of EC2 has none that could be examined here",
                config.require_signature.origin
            ),
            "use a backend of this host, such as --backend qemu",
        ));
    }
    let of_here = "machines of EC2 have their own";
    let publish =
        "make it part of the image, and publish that: apppot snap commit, apppot image publish ec2";
    let copied = "put it into the job directory, which is copied";
    let options = [
        ("--overlay", args.overlay.is_some(), publish),
        ("--write", args.write, publish),
        ("--changes", !args.changes.is_empty(), publish),
        ("--bind", !args.bind.is_empty(), copied),
        (
            "'bind' in the configuration",
            !config.bind.value.is_empty(),
            copied,
        ),
        ("--tty", args.tty, "leave it out: there is no terminal"),
        ("--kernel", args.kernel.is_some(), of_here),
        ("--extra", !args.extra.is_empty(), of_here),
        ("--firmware", args.firmware.is_some(), of_here),
        (
            "--network",
            args.network.is_some(),
            "choose --ec2-subnet and --ec2-group",
        ),
        ("--containment", args.containment.is_some(), of_here),
        ("--seccomp", args.seccomp.is_some(), of_here),
        ("--connect", args.connect.is_some(), "it is libvirt's"),
        ("--pty-console", args.pty_console, "it is libvirt's"),
        (
            "--channel",
            config.channel.value != "auto" && config.channel.origin == Origin::Option,
            "leave it out: files travel by objects of the bucket",
        ),
    ];
    match options.into_iter().find(|(_, given, _)| *given) {
        None => Ok(()),
        Some((option, _, hint)) => Err(hinted(
            format!("{option} cannot be used with --backend ec2"),
            hint,
        )),
    }
}

/// Refuses options of a cloud for machines of this host.
///
/// # Errors
/// The option.
pub(crate) fn refuse_elsewhere(args: &MachineArgs) -> Result<()> {
    let ec2 = &args.ec2;
    let options = [
        ("--ec2-bucket", ec2.ec2_bucket.is_some()),
        ("--ec2-type", ec2.ec2_type.is_some()),
        ("--ec2-subnet", ec2.ec2_subnet.is_some()),
        ("--ec2-group", !ec2.ec2_group.is_empty()),
        ("--ec2-key", ec2.ec2_key.is_some()),
        ("--ec2-disk", ec2.ec2_disk.is_some()),
        ("--ec2-spot", ec2.ec2_spot),
        ("--detach", ec2.detach),
    ];
    match options.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => Err(hinted(
            format!("{option} is for machines of EC2"),
            "leave it out, or use --backend ec2",
        )),
    }
}
