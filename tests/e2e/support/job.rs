//! A job directory, and a run in it as it is put together.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::cloud::{cloud, Cloud, Tenant};
use super::{debian_image, processes, site, Backend, Done, Running, Site};

/// A directory of one test's own, with the job directory in it. Removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) site: &'static Site,
    /// Where its machines are, if they are in one.
    cloud: Option<&'static Cloud>,
    base: PathBuf,
    directory: PathBuf,
}

impl Job {
    /// `None` when there is nothing to make machines with.
    pub(crate) fn new() -> Option<Self> {
        Self::named("job")
    }

    /// For a test of what only User-Mode Linux has, and why the others have not.
    pub(crate) fn on_uml(why: &str) -> Option<Self> {
        if site()?.backend == Backend::Uml {
            return Self::new();
        }
        eprintln!("of User-Mode Linux only: {why}");
        None
    }

    /// The cases that are gone through: all, but in a cloud, where a machine takes half a minute to boot, the first
    /// `few` only.
    pub(crate) fn cases<'c, T>(&self, few: usize, all: &'c [T]) -> &'c [T] {
        match self.cloud {
            Some(_) => &all[..few],
            None => all,
        }
    }

    /// With a job directory of that name.
    pub(crate) fn named(name: impl AsRef<OsStr>) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let site = site()?;
        let cloud = match site.backend {
            Backend::Ec2 => Some(cloud()?),
            _ => None,
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = site.stage.join("jobs").join(number.to_string());
        let directory = base.join(name.as_ref());
        for path in [&base, &directory] {
            fs::create_dir(path).unwrap();
            site.give(path);
        }
        Some(Job {
            site,
            cloud,
            base,
            directory,
        })
    }

    /// The job directory.
    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// A path beside the job directory, which a machine must not reach unless it is told to.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Makes a directory beside the job directory.
    pub(crate) fn directory_beside(&self, name: &str) -> PathBuf {
        let path = self.beside(name);
        fs::create_dir(&path).unwrap();
        self.give(&path);
        path
    }

    /// Gives a file to the user.
    pub(crate) fn give(&self, path: &Path) {
        self.site.give(path);
    }

    /// The user and group, as chown(1) takes them.
    pub(crate) fn owner(&self) -> String {
        format!("{}:{}", self.site.user.uid, self.site.user.gid)
    }

    /// Writes a file, `name` in the job directory or an absolute path.
    pub(crate) fn put(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.join(name);
        fs::write(&path, content).unwrap();
        self.give(&path);
        path
    }

    /// Writes an executable file.
    pub(crate) fn script(&self, name: &str, content: &str) -> PathBuf {
        let path = self.put(name, content);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// What a file in the job directory holds.
    pub(crate) fn read(&self, name: &str) -> String {
        let path = self.directory.join(name);
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.directory.join(name).symlink_metadata().is_ok()
    }

    /// `apppot` with `args`.
    pub(crate) fn apppot<A: AsRef<OsStr>>(&self, args: &[A]) -> Run<'_> {
        Run::new(self, args)
    }

    /// `apppot run -- command`.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, command: &[A]) -> Run<'_> {
        let mut run = Run::new(self, &["run"]);
        run.command = command
            .iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        run
    }

    /// `apppot run -- sh -c script`.
    pub(crate) fn sh(&self, script: &str) -> Run<'_> {
        self.run(&["sh", "-c", script])
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.base);
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

/// How much longer than on an idle machine with User-Mode Linux a run may take.
const SLOWER: u32 = 5;

/// How long a run in a cloud may take at least: the system of its machine boots without hardware virtualisation, and
/// nobody says how busy the others are.
const LONGEST: Duration = Duration::from_secs(420);

/// Standard input of a run.
#[derive(Debug)]
pub(crate) enum Input {
    Null,
    Closed,
    Bytes(Vec<u8>),
    /// A pipe that stays open, and to which `Running::type_in` writes.
    Open,
    File(File),
}

/// A run of `apppot`, before it is started.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    job: &'a Job,
    args: Vec<OsString>,
    command: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    /// Who it is for the cloud.
    tenant: Option<Tenant>,
    input: Input,
    output: Option<OwnedFd>,
    directory: PathBuf,
    binary: &'a Path,
    limit: Duration,
    limits: Vec<(libc::__rlimit_resource_t, u64)>,
    mounts: Option<String>,
    has_own_network: bool,
    umask: Option<u32>,
    ignored: Option<i32>,
    has_unnamed_files: bool,
    has_locks: bool,
}

impl<'a> Run<'a> {
    fn new<A: AsRef<OsStr>>(job: &'a Job, args: &[A]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let home = job.site.stage.join("home");
        let mut environment = vec![
            ("PATH", job.site.search_path()),
            ("HOME", home.into()),
            ("USER", OsString::from(&job.site.user.name)),
            ("XDG_RUNTIME_DIR", job.site.stage.join("runtime").into()),
            ("APPPOT_BACKEND", job.site.backend.name().into()),
        ];
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tenant = job.cloud.map(|cloud| cloud.tenant(number));
        match &tenant {
            Some(tenant) => environment.extend(tenant.environment()),
            None => environment.extend([
                ("APPPOT_KERNEL", job.site.kernel.clone().into()),
                ("APPPOT_CHANNEL", super::channel().into()),
            ]),
        }
        let owned = |(name, value): (&str, OsString)| (OsString::from(name), value);
        Run {
            job,
            args: args.iter().map(|arg| arg.as_ref().to_owned()).collect(),
            command: Vec::new(),
            environment: environment.into_iter().map(owned).collect(),
            tenant,
            input: Input::Null,
            output: None,
            directory: job.directory.clone(),
            binary: &job.site.binary,
            limit: Duration::from_secs(60),
            limits: Vec::new(),
            mounts: None,
            has_own_network: false,
            umask: None,
            ignored: None,
            has_unnamed_files: true,
            has_locks: true,
        }
    }

    /// Adds options.
    pub(crate) fn with<A: AsRef<OsStr>>(mut self, options: &[A]) -> Self {
        self.args
            .extend(options.iter().map(|option| option.as_ref().to_owned()));
        self
    }

    pub(crate) fn image(self, image: &Path) -> Self {
        self.with(&[OsStr::new("--image"), image.as_os_str()])
    }

    /// In the Debian image; `None` when there is none.
    pub(crate) fn debian(self) -> Option<Self> {
        debian_image().map(|image| self.image(image))
    }

    /// A variable of the launcher's own environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.into(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self
    }

    pub(crate) fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    pub(crate) fn bytes(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input(Input::Bytes(bytes.into()))
    }

    /// Where standard output goes, instead of being kept.
    pub(crate) fn output(mut self, output: impl Into<OwnedFd>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// The directory it is started in.
    pub(crate) fn started_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Another copy of `apppot` than the one that was built.
    pub(crate) fn binary(mut self, binary: &'a Path) -> Self {
        self.binary = binary;
        self
    }

    /// How long it may take before it is killed, where instructions are not translated and nobody else computes:
    /// what hangs is to be noticed, not what is slow.
    pub(crate) fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Limits the launcher's address space, as `ulimit -v` does.
    pub(crate) fn address_space(self, bytes: u64) -> Self {
        self.limit_of(libc::RLIMIT_AS, bytes)
    }

    /// Limits the launcher, as `ulimit` does.
    pub(crate) fn limit_of(mut self, resource: libc::__rlimit_resource_t, most: u64) -> Self {
        self.limits.push((resource, most));
        self
    }

    /// The launcher's umask.
    pub(crate) fn umask(mut self, mask: u32) -> Self {
        self.umask = Some(mask);
        self
    }

    /// A signal that the launcher's parent has ignored, as nohup(1) does.
    pub(crate) fn ignoring(mut self, signal: i32) -> Self {
        self.ignored = Some(signal);
        self
    }

    /// Where no filesystem makes files without a name (`O_TMPFILE`), as NFS.
    pub(crate) fn without_unnamed_files(mut self) -> Self {
        self.has_unnamed_files = false;
        self
    }

    /// Where no filesystem has locks (flock), as some of clusters.
    pub(crate) fn without_locks(mut self) -> Self {
        self.has_locks = false;
        self
    }

    /// Runs it where this shell script, as root of a mount namespace of its own, has changed the
    /// mounts. (An ordinary user is root there, and stays it.)
    pub(crate) fn mounts(mut self, script: &str) -> Self {
        self.mounts = Some(format!("set -e\n{script}\nexec \"$@\""));
        self
    }

    /// As [`Run::mounts`], also in a network namespace of its own.
    pub(crate) fn network(mut self, script: &str) -> Self {
        self.has_own_network = true;
        if self.job.site.backend != Backend::Libvirt {
            return self.mounts(script);
        }
        // QEMU is in its daemon's network, so there is a daemon there, too.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let runtime = self.job.directory_beside(&format!("network{number}"));
        let daemon = super::daemon::in_network(self.job.site, &runtime);
        self.env("XDG_RUNTIME_DIR", &runtime)
            .mounts(&format!("{script}\n{daemon}"))
    }

    /// The process as it will be started, but for its standard streams.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.launcher();
        command.args(&self.args);
        if !self.command.is_empty() {
            command.arg("--").args(&self.command);
        }
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory);
        let close = matches!(self.input, Input::Closed);
        let (limits, umask, ignored) = (self.limits.clone(), self.umask, self.ignored);
        let (has_unnamed_files, has_locks) = (self.has_unnamed_files, self.has_locks);
        // SAFETY: only async-signal-safe calls.
        unsafe {
            command.pre_exec(move || {
                if close {
                    libc::close(0);
                }
                for &(resource, most) in &limits {
                    let limit = libc::rlimit {
                        rlim_cur: most,
                        rlim_max: most,
                    };
                    libc::setrlimit(resource, &limit);
                }
                if let Some(mask) = umask {
                    libc::umask(mask);
                }
                // As from a shell that somebody types in, also where `nohup` or a script's `&` started the tests.
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                if let Some(signal) = ignored {
                    libc::signal(signal, libc::SIG_IGN);
                }
                if !has_unnamed_files {
                    processes::refuse_unnamed_files()?;
                }
                match has_locks {
                    true => Ok(()),
                    false => processes::refuse_locks(),
                }
            });
        }
        command
    }

    /// The launcher, perhaps behind programs that prepare the ground and become it.
    fn launcher(&self) -> Command {
        let site = self.job.site;
        let Some(script) = &self.mounts else {
            let mut command = Command::new(self.binary);
            processes::as_user(&mut command, site);
            return command;
        };
        let mut command = Command::new("unshare");
        command.arg(if site.is_root { "-m" } else { "-rm" });
        if self.has_own_network {
            command.arg("-n");
        }
        command.args(["sh", "-c", script, "sh"]);
        if site.is_root {
            let (uid, gid) = (site.user.uid.to_string(), site.user.gid.to_string());
            command.args([
                "setpriv",
                "--reuid",
                &uid,
                "--regid",
                &gid,
                "--clear-groups",
            ]);
        }
        command.arg(self.binary);
        command
    }

    /// Starts it.
    pub(crate) fn start(self) -> Running {
        let mut command = self.command();
        command.stderr(Stdio::piped());
        match self.output {
            Some(output) => command.stdout(output),
            None => command.stdout(Stdio::piped()),
        };
        let (stdin, bytes) = match self.input {
            Input::Null | Input::Closed => (Stdio::null(), None),
            Input::Bytes(bytes) => (Stdio::piped(), Some(bytes)),
            Input::Open => (Stdio::piped(), None),
            Input::File(file) => (file.into(), None),
        };
        let child = processes::spawn(command.stdin(stdin)).unwrap();
        let limit = match self.tenant {
            Some(_) => LONGEST.max(self.limit * SLOWER),
            None => self.limit * SLOWER,
        };
        Running::new(child, bytes, limit, self.tenant)
    }

    /// Runs it to its end.
    pub(crate) fn go(self) -> Done {
        self.start().finish()
    }
}
