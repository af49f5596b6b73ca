//! GRUB for BIOSes and for UEFI firmware, of the files of this host's packages: nothing is installed on
//! the host, and no device is asked what it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};
use apppot_image::layout::{Loader, EFI_SIZE};
use apppot_snapshot::uuid;

use crate::failure::hinted;

/// Where distributions have GRUB's modules.
const MODULES: &str = "/usr/lib/grub";
/// What both kinds need: to find the root, read its configuration, and start Linux.
const COMMON: &[&str] = &[
    "part_gpt",
    "ext2",
    "search_fs_uuid",
    "normal",
    "configfile",
    "linux",
    "serial",
    "terminal",
    "echo",
    "probe",
    "test",
    "halt",
    "reboot",
];
const BIOS: &str = "i386-pc";
const EFI: &str = "x86_64-efi";
const PACKAGES: &str = "install grub-common, grub-pc-bin, grub-efi-amd64-bin and mtools";

/// Whether everything is there.
///
/// # Errors
/// What is missing.
pub(super) fn check() -> Result<()> {
    for path in [format!("{BIOS}/boot.img"), format!("{EFI}/kernel.img")] {
        let path = Path::new(MODULES).join(path);
        if !path.is_file() {
            return Err(hinted(
                format!("there is no GRUB here: no {}", path.display()),
                PACKAGES,
            ));
        }
    }
    program("mformat", "--version")?;
    program("grub-mkimage", "--version")
}

fn program(name: &str, argument: &str) -> Result<()> {
    call(Command::new(name).arg(argument))
}

/// Makes the loader for the root with this identifier.
///
/// # Errors
/// A tool is missing or fails.
pub(super) fn make(root: &[u8; 16]) -> Result<Loader> {
    let room = tempfile::tempdir().context("cannot make a temporary directory")?;
    let configuration = room.path().join("grub.cfg");
    // What follows is in the root, where it can be changed.
    let text = format!(
        "search.fs_uuid {} root\nset prefix=($root)/boot/grub\n",
        uuid(root)
    );
    std::fs::write(&configuration, text).context("cannot write GRUB's configuration")?;
    let image = |format: &str, modules: &[&str]| -> Result<PathBuf> {
        let path = room.path().join(format);
        let mut command = Command::new("grub-mkimage");
        command
            .args(["-O", format, "-p", "/boot/grub", "-c"])
            .arg(&configuration);
        command.arg("-o").arg(&path).args(COMMON).args(modules);
        call(&mut command)?;
        Ok(path)
    };
    let core = image(BIOS, &["biosdisk"])?;
    let program = image(EFI, &[])?;
    let efi = room.path().join("efi");
    make_fat(&efi, &program)?;
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read '{}'", path.display()))
    };
    Ok(Loader {
        boot: read(&Path::new(MODULES).join(BIOS).join("boot.img"))?,
        core: read(&core)?,
        efi: read(&efi)?,
    })
}

/// A FAT filesystem with the program where firmware looks for one on any disk.
fn make_fat(target: &Path, program: &Path) -> Result<()> {
    let tool = |name: &str, args: &[&str]| {
        let mut command = Command::new(name);
        command.arg("-i").arg(target).args(args);
        // The same source gives the same image: no identifier and no time of today.
        command.env("SOURCE_DATE_EPOCH", "315532800");
        command
    };
    let sectors = (EFI_SIZE / 512).to_string();
    let words = [
        "-C", "-T", &sectors, "-h", "64", "-s", "32", "-N", "0", "-v", "EFI", "::",
    ];
    call(&mut tool("mformat", &words))?;
    call(&mut tool("mmd", &["::/EFI", "::/EFI/BOOT"]))?;
    call(
        tool("mcopy", &[])
            .arg(program)
            .arg("::/EFI/BOOT/BOOTX64.EFI"),
    )
}

/// Runs a tool.
fn call(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output =
        output.map_err(|error| hinted(format!("cannot start {name}: {error}"), PACKAGES))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
