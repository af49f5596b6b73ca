//! The UML kernel: where it is and what it can do.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::ask;
use crate::cache;
use crate::{kernels, Error, Result};

/// Whether a kernel has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    /// Built in.
    BuiltIn,
    /// As a module.
    Module,
    /// Not at all.
    No,
}

/// A UML kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The executable.
    pub path: PathBuf,
    /// Its release, such as `6.1.176`; our own has `-apppot` at its end.
    pub release: String,
    /// Major and minor version.
    pub version: (u32, u32),
    /// What is asked of its configuration, as `--showconfig` prints it.
    config: String,
}

const FIND_HINT: &str =
    "install the package user-mode-linux, build a kernel with 'make kernel', or \
    name one with --kernel or APPPOT_KERNEL";
const KIND_HINT: &str =
    "a kernel is a User-Mode Linux executable, such as /usr/bin/linux.uml of the \
    package user-mode-linux";
/// What to do about a kernel that lacks something.
pub(super) const LACKS_HINT: &str =
    "'make kernel' builds a kernel that has everything AppPot can use";

impl Kernel {
    /// The kernel at `chosen`, or the first one found.
    ///
    /// # Errors
    /// There is none, or it is no UML kernel.
    pub fn find(chosen: Option<&Path>) -> Result<Self> {
        if let Some(path) = chosen {
            return Self::inspect(path);
        }
        match first() {
            Some(path) => Self::inspect(&path),
            None => Err(Error::NoKernel {
                what: "User-Mode Linux kernel",
                hint: FIND_HINT,
                searched: places(),
            }),
        }
    }

    /// Looks at the kernel at `path`.
    ///
    /// # Errors
    /// It is missing, not executable, or no UML kernel.
    pub fn inspect(path: &Path) -> Result<Self> {
        let refuse = |reason: &str| Error::Kernel {
            path: path.to_owned(),
            reason: reason.to_owned(),
            hint: KIND_HINT,
        };
        // A bare name would be looked for in PATH when it is started.
        let absolute = std::path::absolute(path).map_err(Error::file("open kernel", path))?;
        let path = absolute.as_path();
        let metadata = std::fs::metadata(path).map_err(Error::file("open kernel", path))?;
        if !metadata.is_file() {
            return Err(refuse("it is no file"));
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            return Err(refuse("it is not executable"));
        }
        let kept = cache::get(cache::Kind::UmlConfig, &metadata)
            .and_then(|config| Self::from_config(path, &config));
        if let Some(kernel) = kept {
            return Ok(kernel);
        }
        let config = ask::program(path, "--showconfig").map_err(|reason| refuse(&reason))?;
        let kernel = Self::from_config(path, &config);
        let kernel = kernel.ok_or_else(|| refuse("it is no User-Mode Linux kernel"))?;
        cache::put(cache::Kind::UmlConfig, &metadata, &kernel.config);
        Ok(kernel)
    }

    fn from_config(path: &Path, config: &str) -> Option<Self> {
        // "# Linux/um 6.1.176 Kernel Configuration"
        let number = config
            .lines()
            .take(8)
            .find_map(|line| line.strip_prefix("# Linux/um "))?
            .split_whitespace()
            .next()?;
        let mut parts = number.split(['.', '-']);
        let version = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let local = value(config, "LOCALVERSION").unwrap_or_default();
        Some(Kernel {
            path: path.to_owned(),
            release: format!("{number}{}", local.trim_matches('"')),
            version,
            config: interesting(config),
        })
    }

    /// Whether it has `CONFIG_<option>`.
    #[must_use]
    pub fn has(&self, option: &str) -> Has {
        match value(&self.config, option) {
            Some("y") => Has::BuiltIn,
            Some("m") => Has::Module,
            _ => Has::No,
        }
    }

    /// Whether it can use seccomp instead of ptrace.
    #[must_use]
    pub fn has_seccomp(&self) -> bool {
        self.version >= (6, 16)
    }

    /// Whether it can have more than one vCPU (which needs seccomp).
    #[must_use]
    pub fn has_smp(&self) -> bool {
        self.version >= (6, 19) && self.has("SMP") == Has::BuiltIn
    }

    /// Timer ticks a second.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        value(&self.config, "HZ")
            .and_then(|text| text.parse().ok())
            .unwrap_or(100)
    }

    /// Whether it has our own patches (`images/kernel/patches`).
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.release.ends_with("-apppot")
    }

    /// The directory with its modules.
    #[must_use]
    pub fn modules(&self) -> Option<PathBuf> {
        let beside = self.path.parent().map(|parent| parent.join("modules"));
        ["/usr/lib/uml/modules", "/lib/modules"]
            .into_iter()
            .map(PathBuf::from)
            .chain(beside)
            .map(|base| base.join(&self.release))
            .find(|directory| directory.join("modules.dep").is_file())
    }

    /// Files that it is linked with at run time, the loader included; none for a static one.
    ///
    /// # Errors
    /// The file cannot be read, or the loader fails.
    pub fn libraries(&self) -> Result<Vec<PathBuf>> {
        let dynamic = is_dynamic(&self.path).map_err(Error::file("read kernel", &self.path))?;
        if !dynamic {
            return Ok(Vec::new());
        }
        // What ldd(1) does; only for a file with a loader, which then does not start it.
        let output = Command::new(&self.path)
            .env_clear()
            .env("LD_TRACE_LOADED_OBJECTS", "1")
            .stdin(Stdio::null())
            .output()
            .map_err(Error::file("run kernel", &self.path))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
        Ok(paths.map(PathBuf::from).collect())
    }
}

/// The kernel that is used when nobody chooses one.
#[must_use]
pub fn first() -> Option<PathBuf> {
    places().into_iter().find(|path| path.is_file())
}

/// Where a kernel is looked for, in this order.
fn places() -> Vec<PathBuf> {
    let mut places = kernels::places("linux");
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin".into());
    for name in ["linux.uml", "linux"] {
        places.extend(
            std::env::split_paths(&path)
                .filter(|directory| directory.is_absolute())
                .map(|directory| directory.join(name)),
        );
    }
    places
}

/// The lines of a configuration that this crate asks for.
fn interesting(config: &str) -> String {
    const OPTIONS: [&str; 13] = [
        "LOCALVERSION",
        "HZ",
        "SMP",
        "MCONSOLE",
        "HOSTFS",
        "OVERLAY_FS",
        "EXT4_FS",
        "SQUASHFS",
        "EROFS_FS",
        "XFS_FS",
        "BTRFS_FS",
        "UML_MEM_FD",
        "UML_NET_VECTOR",
    ];
    let is_asked = |line: &&str| {
        let option = line
            .strip_prefix("CONFIG_")
            .and_then(|rest| rest.split('=').next());
        line.starts_with("# Linux/um ") || option.is_some_and(|option| OPTIONS.contains(&option))
    };
    config
        .lines()
        .filter(is_asked)
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The value of `CONFIG_<option>`.
fn value<'a>(config: &'a str, option: &str) -> Option<&'a str> {
    config.lines().find_map(|line| {
        line.strip_prefix("CONFIG_")?
            .strip_prefix(option)?
            .strip_prefix('=')
    })
}

/// Whether an ELF executable names a loader (`PT_INTERP`, elf(5)).
fn is_dynamic(path: &Path) -> std::io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let file = std::fs::File::open(path)?;
    let mut header = [0; 64];
    let len = file.read_at(&mut header, 0)?;
    if len < header.len() || !header.starts_with(b"\x7fELF") {
        return Ok(false);
    }
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let (start, size, count) = (
        number(&header[32..40]),
        number(&header[54..56]),
        number(&header[56..58]),
    );
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, start.saturating_add(index * size))?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Loops a timer tick for the delay calibration (`lpj=`), which takes 90 ms when the kernel does it
/// itself. From the host's first CPU's clock: one loop is about one cycle.
#[must_use]
pub fn loops_per_tick(ticks: u64) -> u64 {
    const FALLBACK_MHZ: f64 = 2000.0;
    let mut start = [0; 4096];
    let text = std::fs::File::open("/proc/cpuinfo")
        .and_then(|mut file| file.read(&mut start))
        .map(|len| String::from_utf8_lossy(&start[..len]).into_owned())
        .unwrap_or_default();
    let mhz = text
        .lines()
        .find(|line| line.starts_with("cpu MHz"))
        .and_then(|line| line.split(':').nth(1)?.trim().parse().ok())
        .filter(|mhz| (100.0..100_000.0).contains(mhz))
        .unwrap_or(FALLBACK_MHZ);
    (mhz * 1e6) as u64 / ticks.max(1)
}

/// The name of a kernel's configuration option for a filesystem, and of its module.
#[must_use]
pub fn filesystem_option(filesystem: &str) -> Option<(&'static str, &'static str)> {
    [
        ("ext4", ("EXT4_FS", "ext4")),
        ("squashfs", ("SQUASHFS", "squashfs")),
        ("erofs", ("EROFS_FS", "erofs")),
        ("xfs", ("XFS_FS", "xfs")),
        ("btrfs", ("BTRFS_FS", "btrfs")),
        ("overlay", ("OVERLAY_FS", "overlay")),
        ("hostfs", ("HOSTFS", "hostfs")),
    ]
    .into_iter()
    .find_map(|(name, option)| (OsStr::new(name) == filesystem).then_some(option))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "#\n# Automatically generated file; DO NOT EDIT.\n\
        # Linux/um 6.1.176 Kernel Configuration\n#\nCONFIG_LOCALVERSION=\"\"\nCONFIG_HZ=100\n\
        CONFIG_OVERLAY_FS=m\n# CONFIG_SMP is not set\nCONFIG_HOSTFS=y\n";
    const OURS: &str = "#\n# Linux/um 7.3.4 Kernel Configuration\n#\n\
        CONFIG_LOCALVERSION=\"-apppot\"\nCONFIG_HZ=250\nCONFIG_OVERLAY_FS=y\nCONFIG_SMP=y\n";

    fn kernel(config: &str) -> Kernel {
        Kernel::from_config(Path::new("/k"), config).unwrap()
    }

    #[test]
    fn features_follow_version_and_configuration() {
        let debian = kernel(DEBIAN);
        assert_eq!(debian.release, "6.1.176");
        assert_eq!(debian.version, (6, 1));
        assert_eq!(debian.has("OVERLAY_FS"), Has::Module);
        assert_eq!(debian.has("HOSTFS"), Has::BuiltIn);
        assert_eq!(debian.has("OVERLAY"), Has::No);
        assert!(!debian.has_seccomp() && !debian.has_smp() && !debian.is_ours());
        let ours = kernel(OURS);
        assert_eq!(ours.release, "7.3.4-apppot");
        assert_eq!(ours.ticks(), 250);
        assert!(ours.has_seccomp() && ours.has_smp() && ours.is_ours());
    }

    #[test]
    fn what_is_no_uml_kernel_is_refused() {
        assert!(Kernel::from_config(Path::new("/k"), "hello").is_none());
        let reason = |path: &str| Kernel::inspect(Path::new(path)).unwrap_err().to_string();
        assert!(reason("/bin/true").contains("no User-Mode Linux kernel"));
        assert!(reason("/etc/passwd").contains("not executable"));
        assert!(reason("/").contains("no file"));
        assert!(reason("/no/such").contains("cannot open kernel"));
    }

    #[test]
    fn a_loader_is_seen() {
        assert!(is_dynamic(Path::new("/bin/sh")).unwrap());
    }

    #[test]
    fn loops_are_plausible() {
        let loops = loops_per_tick(100);
        assert!((1_000_000..1_000_000_000).contains(&loops), "{loops}");
    }
}
