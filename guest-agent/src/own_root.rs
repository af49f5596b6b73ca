//! The root of a machine that an image's own boot loader has started: what its kernel command line says,
//! as other initramfs understand it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apppot_contract::{Root, Writes};

use crate::devices;
use crate::failure::{Failure, Step};
use crate::volumes;

/// Disks of clouds take their time.
const PATIENCE: Duration = Duration::from_secs(30);

/// The root of the line `/proc/cmdline`, once its device is there.
pub(crate) fn find(root: &Path) -> Result<Root, Failure> {
    let step = "finding the root filesystem";
    let line = std::fs::read_to_string(root.join("proc/cmdline")).step(step)?;
    let wanted = wanted(&line)
        .ok_or_else(|| Failure::new(step, "the kernel command line names none (root=)"))?;
    let filesystem = word(&line, "rootfstype=").unwrap_or("ext4");
    let source = match wanted.strip_prefix("UUID=") {
        Some(uuid) => with_uuid(root, uuid)
            .ok_or_else(|| Failure::new(step, format!("no disk has the filesystem {uuid}")))?,
        None => {
            devices::wait_for(Path::new(wanted));
            PathBuf::from(wanted)
        }
    };
    Ok(Root {
        filesystem: filesystem.to_owned(),
        source: OsString::from(source),
        writes: Writes::Device,
    })
}

/// The value of the last word that starts so, as the kernel takes it.
fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix(key))
}

/// What `root=` names, as far as it is understood here.
fn wanted(line: &str) -> Option<&str> {
    word(line, "root=").filter(|root| root.starts_with("UUID=") || root.starts_with("/dev/"))
}

fn with_uuid(root: &Path, uuid: &str) -> Option<PathBuf> {
    let end = Instant::now() + PATIENCE;
    loop {
        let volumes = volumes::all(root);
        let mut fitting = volumes
            .into_iter()
            .filter(|volume| volume.uuid.eq_ignore_ascii_case(uuid));
        match fitting.next() {
            Some(volume) => return Some(volume.device),
            None if Instant::now() >= end => return None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_the_root() {
        let parts: [(u64, &[u8]); 2] = [(1080, b"\x53\xef"), (1128, b"0123456789abcdef")];
        let root = volumes::tests::root_with("vda1", &parts);
        std::fs::create_dir(root.path().join("proc")).unwrap();
        let found = |line: &str| {
            std::fs::write(root.path().join("proc/cmdline"), line).unwrap();
            find(root.path()).map(|found| (found.filesystem, found.source))
        };
        let device = root.path().join("dev/vda1").into_os_string();
        let uuid = "root=/dev/sda1 root=UUID=30313233-3435-3637-3839-616263646566 rw\n";
        assert_eq!(found(uuid), Ok((String::from("ext4"), device)));
        assert_eq!(
            found("root=/dev/null rootfstype=xfs"),
            Ok((String::from("xfs"), "/dev/null".into()))
        );
        for none in ["quiet", "root=PARTLABEL=x"] {
            assert!(found(none).unwrap_err().reason.contains("root="));
        }
    }
}
