//! Layout disk: what lets an image boot by itself, and answer to a launcher that boots it so.
//!
//! The kernel is the source's own. The rest comes with the command, so that it is the same for every
//! distribution: an initramfs that is the agent and the drivers that find the root, the agent as a
//! service, and GRUB, made of the files of this host's packages.

mod grub;

use std::fs::File;

use anyhow::{Context, Result};
use apppot_backends::{initramfs, modules};
use apppot_image::{layout, Filesystem, Summary};

use crate::failure::hinted;

/// The directory that holds what is booted. Packages of kernels do not know it, so that neither an
/// upgrade nor a removal leaves an image that does not boot.
const DIRECTORY: &str = "boot/apppot";
/// The agent in the image.
const AGENT: &str = "usr/lib/apppot/agent";
/// The other end of its link in clouds, which nobody but the agent starts.
const COURIER: &str = "usr/lib/apppot/courier";
const COURIER_PROGRAM: &[u8] = include_bytes!(env!("APPPOT_COURIER"));

/// Its version, for 'apppot image info'.
pub(super) const VERSION: &str = "etc/apppot/agent-version";

const UNIT: &str = include_str!("apppot.service");
const SCRIPT: &str = include_str!("apppot.init");
const GRUB: &str = include_str!("grub.cfg");
const PRESET: &str = "enable apppot.service\n";

/// The drivers in the initramfs, where the kernel has them as modules: disks of machines real and
/// virtual, the network cards of clouds, what carries contracts, jobs and their files. In the order of
/// loading, apart from what they need themselves.
const DRIVERS: &[&str] = &[
    "crc32c_generic",
    "ext4",
    "overlay",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "nvme",
    "ahci",
    "ata_piix",
    "xen_blkfront",
    "sd_mod",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "ena",
    "qemu_fw_cfg",
    "9pnet_virtio",
    "9p",
    "nls_ascii",
    "nls_cp437",
    "nls_iso8859_1",
    "vfat",
    "isofs",
];

/// The largest kernel, module and list that are read, bytes.
const LARGEST: usize = 64 << 20;

/// Adds what is in the root: kernel, initramfs, loader's configuration, agent and service.
///
/// # Errors
/// The source has no kernel that is of use, or writing fails.
pub(super) fn prepare(filesystem: &mut Filesystem) -> Result<()> {
    let (release, kernel) = kernel(filesystem)?;
    let at = |name: &str| format!("{DIRECTORY}/{name}");
    filesystem.add_link(&at("vmlinuz"), &kernel)?;
    let initrd = initrd(filesystem, &release)?;
    filesystem.add_file(&at("initrd"), 0o600, &initrd)?;
    filesystem.add_file("boot/grub/grub.cfg", 0o644, GRUB.as_bytes())?;
    filesystem.add_file(AGENT, 0o755, crate::run::AGENT)?;
    filesystem.add_file(COURIER, 0o755, COURIER_PROGRAM)?;
    let version = concat!(env!("CARGO_PKG_VERSION"), "\n");
    filesystem.add_file(VERSION, 0o644, version.as_bytes())?;
    let systemd = ["usr/lib/systemd/systemd", "lib/systemd/systemd"];
    let mut has_systemd = false;
    for path in systemd {
        has_systemd |= filesystem.has(path)?;
    }
    match has_systemd {
        true => add_unit(filesystem),
        false => add_script(filesystem),
    }
}

fn add_unit(filesystem: &mut Filesystem) -> Result<()> {
    let unit = "usr/lib/systemd/system/apppot.service";
    let wanted = "etc/systemd/system/multi-user.target.wants/apppot.service";
    filesystem.add_file(unit, 0o644, UNIT.as_bytes())?;
    filesystem.add_symlink(wanted, &format!("/{unit}"))?;
    // The first boot of an image without a machine's identity goes by the presets.
    let preset = "usr/lib/systemd/system-preset/80-apppot.preset";
    Ok(filesystem.add_file(preset, 0o644, PRESET.as_bytes())?)
}

fn add_script(filesystem: &mut Filesystem) -> Result<()> {
    filesystem.add_file("etc/init.d/apppot", 0o755, SCRIPT.as_bytes())?;
    for level in 2..=5 {
        filesystem.add_symlink(&format!("etc/rc{level}.d/S99apppot"), "../init.d/apppot")?;
    }
    // Where scripts run side by side, only those in this list are started (startpar(8)).
    let list = "etc/init.d/.depend.start";
    if let Some(text) = filesystem.read_file(list, LARGEST)? {
        let text = with_target(&String::from_utf8_lossy(&text));
        filesystem.add_file(list, 0o644, text.as_bytes())?;
    }
    Ok(())
}

/// The list of scripts with ours.
fn with_target(list: &str) -> String {
    let lines = list.lines().map(|line| {
        let names = line.strip_prefix("TARGETS =");
        let is_new = |names: &str| !names.split_whitespace().any(|name| name == "apppot");
        match names.is_some_and(is_new) {
            true => format!("{line} apppot\n"),
            false => format!("{line}\n"),
        }
    });
    lines.collect()
}

/// The newest kernel that has its modules with it: its release and its path.
fn kernel(filesystem: &mut Filesystem) -> Result<(String, String)> {
    let mut releases = filesystem.names("lib/modules")?;
    releases.sort_by_cached_key(|release| version(release));
    for release in releases.into_iter().rev() {
        // Debian and most others; Fedora and Arch.
        for path in [
            format!("boot/vmlinuz-{release}"),
            format!("lib/modules/{release}/vmlinuz"),
        ] {
            if filesystem.has(&path)? {
                return Ok((release, path));
            }
        }
    }
    Err(hinted(
        "the source has no kernel with its modules (/boot/vmlinuz-RELEASE, /lib/modules/RELEASE)",
        "install one in it: linux-image-amd64 on Debian; or make an image of layout partition, which \
         launchers boot with their own",
    ))
}

/// What a release is sorted by: numbers as numbers.
fn version(release: &str) -> Vec<(u64, String)> {
    let parts = release.split(|c: char| !c.is_ascii_alphanumeric());
    let number = |part: &str| part.parse().unwrap_or(0);
    parts.map(|part| (number(part), part.to_owned())).collect()
}

/// The initramfs for the kernel of that release.
fn initrd(filesystem: &mut Filesystem, release: &str) -> Result<Vec<u8>> {
    let base = format!("lib/modules/{release}");
    let mut list = |name: &str| {
        let path = format!("{base}/{name}");
        let text = filesystem.read_file(&path, LARGEST)?;
        let text = text.ok_or_else(|| {
            hinted(
                format!("the kernel {release} has no list of its modules (/{path})"),
                format!("run in the source: depmod {release}"),
            )
        })?;
        String::from_utf8(text).with_context(|| format!("/{path}"))
    };
    let (built_in, loadable) = (list("modules.builtin")?, list("modules.dep")?);
    let has = |text: &str, driver: &str| modules::lists(text, driver);
    if !has(&built_in, "ext4") && !has(&loadable, "ext4") {
        anyhow::bail!("the kernel {release} cannot mount ext4");
    }
    let wanted = DRIVERS.iter().copied();
    let wanted = wanted.filter(|name| !has(&built_in, name) && has(&loadable, name));
    let wanted: Vec<&str> = wanted.collect();
    let files = modules::order(&loadable, &wanted)
        .map_err(|name| anyhow::anyhow!("modules.dep of {release} lacks {name}"))?;
    let mut content = Vec::new();
    for file in files {
        let path = format!("{base}/{file}");
        let bytes = filesystem.read_file(&path, LARGEST)?;
        let bytes = bytes.with_context(|| format!("the kernel's module /{path} is missing"))?;
        let name = file.rsplit('/').next().unwrap_or(file);
        content.push((name.to_owned(), bytes));
    }
    Ok(initramfs::build(crate::run::AGENT.into(), content).concat())
}

/// Adds what is around the finished root: partition table and boot loader. The size of the disk, bytes.
///
/// # Errors
/// GRUB or the tools for it are missing, or writing fails.
pub(super) fn complete(file: &File, root: &Summary) -> Result<u64> {
    Ok(layout::complete(file, root, &grub::make(&root.uuid)?)?)
}

/// Whether this host has what [`complete`] needs.
///
/// # Errors
/// What is missing, and the packages that have it.
pub(super) fn check() -> Result<()> {
    grub::check()
}

#[cfg(test)]
mod tests {
    use super::*;
    use apppot_image::Options;

    const RELEASE: &str = "6.1.0-10-amd64";

    fn filesystem(file: &File) -> Filesystem {
        let options = Options {
            start: layout::ROOT,
            ..Options::default()
        };
        let mut filesystem = Filesystem::new(file.try_clone().unwrap(), options).unwrap();
        for release in ["6.1.0-9-amd64", RELEASE] {
            let kernel = format!("boot/vmlinuz-{release}");
            filesystem
                .add_file(&kernel, 0o644, release.as_bytes())
                .unwrap();
            let base = format!("lib/modules/{release}");
            for (name, text) in [
                ("modules.builtin", "kernel/fs/ext4/ext4.ko\n"),
                (
                    "modules.dep",
                    "kernel/nvme.ko: kernel/nvme-core.ko\nkernel/nvme-core.ko:\n",
                ),
                ("kernel/nvme.ko", "the driver"),
                ("kernel/nvme-core.ko", "its core"),
            ] {
                let path = format!("{base}/{name}");
                filesystem.add_file(&path, 0o644, text.as_bytes()).unwrap();
            }
        }
        filesystem
    }

    fn read(filesystem: &mut Filesystem, path: &str) -> String {
        let bytes = filesystem.read_file(path, LARGEST).unwrap();
        String::from_utf8_lossy(&bytes.expect(path)).into_owned()
    }

    #[test]
    fn the_newest_kernel_boots_with_the_drivers_that_it_needs() {
        let file = tempfile::tempfile().unwrap();
        let mut filesystem = filesystem(&file);
        prepare(&mut filesystem).unwrap();
        assert_eq!(read(&mut filesystem, "boot/apppot/vmlinuz"), RELEASE);
        let initrd = read(&mut filesystem, "boot/apppot/initrd");
        let place = |name: &str| initrd.find(name).expect(name);
        assert!(place("modules/00-nvme-core.ko") < place("modules/01-nvme.ko"));
        assert!(initrd.contains("the driver"));
        assert!(filesystem.has(AGENT).unwrap() && filesystem.has(COURIER).unwrap());
        let version = read(&mut filesystem, VERSION);
        assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn the_service_is_what_the_init_takes() {
        let file = tempfile::tempfile().unwrap();
        let mut other = filesystem(&file);
        prepare(&mut other).unwrap();
        assert!(other.has("etc/rc2.d/S99apppot").unwrap());
        assert!(read(&mut other, "etc/init.d/apppot").starts_with("#!/bin/sh"));
        let list = "TARGETS = sudo rc.local\nINTERACTIVE =\nrc.local: sudo\n";
        let path = "etc/init.d/.depend.start";
        other.add_file(path, 0o644, list.as_bytes()).unwrap();
        for _ in 0..2 {
            prepare(&mut other).unwrap();
            let expected = list.replace("rc.local\nI", "rc.local apppot\nI");
            assert_eq!(read(&mut other, path), expected);
        }
        let mut systemd = filesystem(&file);
        systemd
            .add_file("usr/lib/systemd/systemd", 0o755, b"")
            .unwrap();
        prepare(&mut systemd).unwrap();
        let wanted = "etc/systemd/system/multi-user.target.wants/apppot.service";
        assert!(systemd.has(wanted).unwrap());
        assert!(!systemd.has("etc/init.d/apppot").unwrap());
    }

    #[test]
    fn what_cannot_boot_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let mut empty = Filesystem::new(file.try_clone().unwrap(), Options::default()).unwrap();
        let error = prepare(&mut empty).unwrap_err();
        assert!(error.to_string().contains("no kernel"), "{error}");
        let mut unlisted = filesystem(&file);
        let list = format!("lib/modules/{RELEASE}/modules.dep");
        unlisted.add_symlink(&list, "/nowhere").unwrap();
        let error = prepare(&mut unlisted).unwrap_err();
        assert!(error.to_string().contains("modules.dep"), "{error}");
    }
}
