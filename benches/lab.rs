//! The laboratory: what there is to measure on this machine. `run.sh` has prepared it and says by
//! environment variables where everything is.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::process::{Account, Run};

/// A User-Mode Linux kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// Its name in the results.
    pub(crate) name: &'static str,
    /// The executable.
    pub(crate) path: PathBuf,
    /// Its release.
    pub(crate) release: String,
    /// Whether it is AppPot's own.
    pub(crate) own: bool,
}

/// Everything that measures need.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The command.
    pub(crate) apppot: PathBuf,
    /// AppPot's own kernel first, Debian's second; at least one.
    pub(crate) kernels: Vec<Kernel>,
    /// The kernel for machines of QEMU.
    pub(crate) qemu_kernel: Option<PathBuf>,
    /// A Debian as an ext4 image.
    pub(crate) image: Option<PathBuf>,
    /// The same Debian as a directory that the user owns.
    pub(crate) root: Option<PathBuf>,
    /// The probe, a static program.
    pub(crate) probe: PathBuf,
    /// A directory with the floor's `init`.
    pub(crate) floor: PathBuf,
    /// A C file for the compiler.
    pub(crate) source: Option<PathBuf>,
    /// Job directory of everything but files' measures.
    pub(crate) jobdir: PathBuf,
    /// Job directory in the host's memory, so that no disk is measured.
    pub(crate) fast_jobdir: PathBuf,
    /// The benchmark's own directory, which the user can write to.
    pub(crate) work: PathBuf,
    /// Where Apptainer is installed; `None`: on PATH or not at all.
    pub(crate) apptainer: Option<Arc<OwnedFd>>,
    /// Whether everything is done in a fraction of the rounds.
    pub(crate) quick: bool,
    account: Option<Account>,
    /// CPUs that may be used.
    pub(crate) cpus: usize,
}

/// Guest memory unless memory is what is measured: the launcher's default, said aloud.
pub(crate) const MEMORY_MIB: u32 = 2048;

impl Lab {
    /// The laboratory that `run.sh` has prepared.
    ///
    /// # Errors
    /// It has not, or something in it is missing.
    pub(crate) fn open() -> Result<Self> {
        let work = needed("WORK")?;
        let account = match env::var("APPPOT_BENCH_USER") {
            Ok(name) if nix::unistd::geteuid().is_root() => Some(Account::named(&name)?),
            _ => None,
        };
        let namespace = given("APPTAINER_NAMESPACE").map(File::open).transpose()?;
        let mut lab = Lab {
            apppot: needed("BINARY")?,
            kernels: Vec::new(),
            qemu_kernel: given("QEMU_KERNEL"),
            image: given("IMAGE"),
            root: given("ROOT"),
            probe: work.join("bin/probe"),
            floor: work.join("floor"),
            source: given("SOURCE"),
            jobdir: work.join("job"),
            fast_jobdir: needed("FAST_JOBDIR")?,
            apptainer: namespace.map(|file| Arc::new(file.into())),
            quick: env::var_os("BENCH_QUICK").is_some_and(|value| value != "0"),
            work,
            account,
            cpus: std::thread::available_parallelism()?.get(),
        };
        for (name, variable, own) in [
            ("own kernel", "OWN_KERNEL", true),
            ("Debian's kernel", "DEBIAN_KERNEL", false),
        ] {
            let found = given(variable).map(|path| lab.kernel(name, path, own));
            lab.kernels.extend(found.transpose()?);
        }
        anyhow::ensure!(
            !lab.kernels.is_empty(),
            "there is no User-Mode Linux kernel"
        );
        Ok(lab)
    }

    fn kernel(&self, name: &'static str, path: PathBuf, own: bool) -> Result<Kernel> {
        let run = self.command([&path]).args(["--version"]);
        let release = run.succeed().context(name)?.text().trim().to_owned();
        Ok(Kernel {
            name,
            path,
            release,
            own,
        })
    }

    /// The kernel that matters most.
    pub(crate) fn first_kernel(&self) -> &Kernel {
        &self.kernels[0]
    }

    /// A command of the ordinary user's.
    pub(crate) fn command<S: Into<OsString>>(&self, argv: impl IntoIterator<Item = S>) -> Run {
        let variable = |name: &str, value: &str| (name.into(), value.into());
        let path = |name: &str, path: &str| (name.into(), self.work.join(path).into_os_string());
        Run {
            argv: argv.into_iter().map(Into::into).collect(),
            env: vec![
                variable("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"),
                variable("LC_ALL", "C.UTF-8"),
                // Charliecloud wants it.
                variable("USER", "user"),
                path("HOME", "home"),
                path("XDG_RUNTIME_DIR", "runtime"),
            ],
            dir: self.jobdir.clone(),
            account: self.account.clone(),
            cpu: None,
            namespace: None,
            feed: false,
            listen: false,
        }
    }

    /// `apppot run` with a kernel, to be completed with `--` and a command.
    pub(crate) fn apppot_run(&self, kernel: &Kernel) -> Run {
        self.command([&self.apppot])
            .args(["run", "--quiet", "--kernel"])
            .args([&kernel.path])
    }

    /// So many rounds, or a few when in a hurry.
    pub(crate) fn rounds(&self, rounds: usize) -> usize {
        match self.quick {
            true => (rounds / 5).max(3),
            false => rounds,
        }
    }
}

fn given(name: &str) -> Option<PathBuf> {
    let value = env::var_os(format!("APPPOT_BENCH_{name}"))?;
    (!value.is_empty()).then(|| PathBuf::from(value))
}

fn needed(name: &str) -> Result<PathBuf> {
    given(name).with_context(|| format!("APPPOT_BENCH_{name} is not set: use 'make bench'"))
}

/// Whether a program of that name is on the PATH that commands get.
pub(crate) fn is_installed(program: &str) -> bool {
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .any(|directory| Path::new(directory).join(program).is_file())
}
