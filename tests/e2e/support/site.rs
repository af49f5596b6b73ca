//! Where the tests run: as whom, with which kernel and image, in which directory.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{cloud, daemon, processes, tools};

/// Who runs the machines.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// What runs the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Uml,
    Qemu,
    Libvirt,
    /// A cloud of our own: see `cloud.rs`.
    Ec2,
}

impl Backend {
    /// As `--backend` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Uml => "uml",
            Backend::Qemu => "qemu",
            Backend::Libvirt => "libvirt",
            Backend::Ec2 => "ec2",
        }
    }
}

/// Everything that is the same for all tests.
#[derive(Debug)]
pub(crate) struct Site {
    /// A directory of this test process's own, removed at its end.
    pub(crate) stage: PathBuf,
    pub(crate) binary: PathBuf,
    pub(crate) backend: Backend,
    pub(crate) kernel: PathBuf,
    /// What a machine's process executes: User-Mode Linux kernels are programs.
    pub(crate) hypervisor: PathBuf,
    pub(crate) user: User,
    /// The helper that the channel virtiofs takes, when it is to be tested.
    pub(crate) virtiofsd: Option<PathBuf>,
    /// The process below which libvirt's machines are.
    pub(crate) daemon: Option<u32>,
    /// Whether we can be any user.
    pub(crate) is_root: bool,
}

impl Site {
    /// Whether the kernel is our own for User-Mode Linux: it has what Debian's has not (SMP, seccomp).
    pub(crate) fn has_own_kernel(&self) -> bool {
        static OWN: OnceLock<bool> = OnceLock::new();
        *OWN.get_or_init(|| {
            if self.backend != Backend::Uml {
                return false;
            }
            let mut command = Command::new(&self.kernel);
            let output = processes::output(command.arg("--showconfig"));
            String::from_utf8_lossy(&output.stdout).contains("CONFIG_LOCALVERSION=\"-apppot\"")
        })
    }

    /// Where runs look for programs.
    pub(crate) fn search_path(&self) -> OsString {
        let usual = ["/usr/local/bin", "/usr/bin", "/bin"].map(Path::new);
        let helpers = self.virtiofsd.as_deref().and_then(Path::parent);
        std::env::join_paths(helpers.into_iter().chain(usual)).unwrap()
    }

    /// Gives `path` to the user.
    pub(crate) fn give(&self, path: &Path) {
        if self.is_root {
            chown(path, Some(self.user.uid), Some(self.user.gid)).unwrap();
        }
    }
}

/// The site; `None` when there is no kernel to test with, which is said and in CI is a failure.
pub(crate) fn site() -> Option<&'static Site> {
    static SITE: OnceLock<Option<Site>> = OnceLock::new();
    SITE.get_or_init(|| {
        tell_failures();
        match find() {
            Ok(site) => Some(site),
            Err(reason) => {
                refuse_to_skip(&reason);
                None
            }
        }
    })
    .as_ref()
}

/// Has the reason of a failure told when it happens, too: half an hour later somebody may have ended the run, or cut
/// what it says.
fn tell_failures() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |failure| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a thread of a test");
        // What tests print is kept until the end; this is not.
        let _ = writeln!(std::io::stderr(), "{name}: {failure}");
        usual(failure);
    }));
}

/// The Debian image, where the user can read it. In a cloud its own: that is one, too.
pub(crate) fn debian_image() -> Option<&'static Path> {
    static IMAGE: OnceLock<Option<PathBuf>> = OnceLock::new();
    if site()?.backend == Backend::Ec2 {
        return Some(Path::new(cloud::IMAGE));
    }
    IMAGE.get_or_init(|| built("APPPOT_TEST_IMAGE")).as_deref()
}

/// An image that `images/build.sh` has built, where the user can read it.
pub(crate) fn built(variable: &str) -> Option<PathBuf> {
    let site = site()?;
    let Some(path) = std::env::var_os(variable) else {
        refuse_to_skip(&format!(
            "{variable} is not set (images/build.sh prints a path)"
        ));
        return None;
    };
    let name = format!("{}.img", variable.to_lowercase());
    Some(lend(site, Path::new(&path), &name))
}

/// A disk that boots by itself, which the user can only read.
pub(crate) fn boot_disk() -> Option<&'static Path> {
    static DISK: OnceLock<Option<PathBuf>> = OnceLock::new();
    DISK.get_or_init(|| make_disk("APPPOT_TEST_ROOT", "boot-disk.img"))
        .as_deref()
}

/// As [`boot_disk`], with System V's init.
pub(crate) fn sysv_disk() -> Option<&'static Path> {
    static DISK: OnceLock<Option<PathBuf>> = OnceLock::new();
    DISK.get_or_init(|| make_disk("APPPOT_TEST_ROOT_SYSV", "sysv-disk.img"))
        .as_deref()
}

fn make_disk(variable: &str, name: &str) -> Option<PathBuf> {
    let site = site()?;
    let Some(root) = std::env::var_os(variable) else {
        refuse_to_skip(&format!(
            "{variable} is not set (images/bootable.sh prints a path)"
        ));
        return None;
    };
    let disk = site.stage.join(name);
    let words = ["image", "import"].map(OsStr::new);
    let paths = [root.as_os_str(), disk.as_os_str()];
    let layout = ["--layout", "disk"].map(OsStr::new);
    let mut command = Command::new(&site.binary);
    let made = processes::output(command.args(words).args(paths).args(layout));
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    Some(disk)
}

/// In CI everything must be there.
pub(crate) fn refuse_to_skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot test: {reason}");
    eprintln!("skipped: {reason}");
}

fn find() -> Result<Site, String> {
    processes::adopt_orphans();
    let is_root = nix::unistd::geteuid().is_root();
    let user = find_user(is_root)?;
    let stage = make_stage();
    let backend = find_backend()?;
    let mut site = Site {
        binary: PathBuf::from(env!("CARGO_BIN_EXE_apppot")),
        backend,
        kernel: match backend {
            // Machines have their own.
            Backend::Ec2 => PathBuf::from("/dev/null"),
            _ => find_kernel()?,
        },
        hypervisor: PathBuf::new(),
        virtiofsd: None,
        daemon: None,
        stage,
        user,
        is_root,
    };
    for name in ["home", "runtime", "jobs"] {
        let path = site.stage.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        site.give(&path);
    }
    site.binary = lend(&site, &site.binary, "apppot");
    let kernel = lend(&site, &site.kernel, "kernel");
    if kernel != site.kernel {
        lend_modules(&site)?;
    }
    site.kernel = kernel;
    let virtiofsd = std::env::var_os("APPPOT_TEST_VIRTIOFSD").filter(|_| backend != Backend::Uml);
    site.virtiofsd = virtiofsd.map(|path| lend(&site, Path::new(&path), "virtiofsd"));
    site.hypervisor = match backend {
        Backend::Uml => site.kernel.clone(),
        Backend::Qemu | Backend::Libvirt | Backend::Ec2 => tools::find("qemu-system-x86_64")
            .ok_or("there is no qemu-system-x86_64: install the package qemu-system-x86")?,
    };
    site.daemon = match backend {
        Backend::Libvirt => Some(daemon::start(&site, &site.stage.join("runtime"))?),
        Backend::Uml | Backend::Qemu | Backend::Ec2 => None,
    };
    Ok(site)
}

fn find_backend() -> Result<Backend, String> {
    let name = std::env::var("APPPOT_TEST_BACKEND").unwrap_or_else(|_| String::from("uml"));
    [Backend::Uml, Backend::Qemu, Backend::Libvirt, Backend::Ec2]
        .into_iter()
        .find(|backend| backend.name() == name)
        .ok_or_else(|| format!("APPPOT_TEST_BACKEND: there is no backend {name}"))
}

/// The modules that lie beside a kernel.
fn lend_modules(site: &Site) -> Result<(), String> {
    let beside = site.kernel.with_file_name("modules");
    if !beside.is_dir() {
        return Ok(());
    }
    let copied = processes::output(Command::new("cp").arg("-rL").arg(beside).arg(&site.stage));
    match copied.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&copied.stderr).into_owned()),
    }
}

fn find_kernel() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("APPPOT_TEST_KERNEL") {
        return Ok(path.into());
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_apppot"));
    let output = processes::output(command.args(["doctor", "--json"]));
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let found = checks[0]["found"].as_str().unwrap_or_default();
    match checks[0]["state"].as_str() {
        Some("good" | "fair") => Ok(found
            .rsplit_once(" (")
            .map_or(found, |(path, _)| path)
            .into()),
        _ => Err(format!(
            "{found}; set APPPOT_TEST_KERNEL or install the package user-mode-linux"
        )),
    }
}

fn find_user(is_root: bool) -> Result<User, String> {
    let wanted = match is_root {
        true => std::env::var("APPPOT_TEST_USER").unwrap_or_else(|_| String::from("apppot-test")),
        false => nix::unistd::geteuid().to_string(),
    };
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() == 7 && (fields[0] == wanted || fields[2] == wanted))
        .ok_or_else(|| {
            format!("there is no user {wanted} to run machines as ('make test' makes it)")
        })?;
    let groups = processes::output(Command::new("id").args(["-G", line[0]]));
    let groups = String::from_utf8_lossy(&groups.stdout);
    Ok(User {
        name: line[0].to_owned(),
        uid: line[2].parse().unwrap(),
        gid: line[3].parse().unwrap(),
        groups: groups
            .split_whitespace()
            .map(|gid| gid.parse().unwrap())
            .collect(),
    })
}

/// `path`, or a copy of it where the user gets to: our files may be below a private home directory.
fn lend(site: &Site, path: &Path, name: &str) -> PathBuf {
    let mut test = Command::new("test");
    processes::as_user(&mut test, site);
    if processes::output(test.arg("-r").arg(path)).status.success() {
        return path.to_owned();
    }
    let copy = site.stage.join(name);
    tools::copy_sparse(path, &copy);
    copy
}

const PREFIX: &str = "apppot-e2e-";

fn make_stage() -> PathBuf {
    let base = Path::new("/var/tmp");
    remove_stale(base);
    let stage = base.join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir(&stage).unwrap();
    std::fs::set_permissions(&stage, std::fs::Permissions::from_mode(0o755)).unwrap();
    // SAFETY: the function takes nothing and does not unwind.
    unsafe { libc::atexit(remove_stage) };
    stage
}

extern "C" fn remove_stage() {
    if let Some(site) = site() {
        daemon::stop(site);
        let _ = std::fs::remove_dir_all(&site.stage);
    }
}

/// What a test process that was killed has left.
fn remove_stale(base: &Path) {
    for entry in std::fs::read_dir(base).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).filter(|pid| !pid.is_empty());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
