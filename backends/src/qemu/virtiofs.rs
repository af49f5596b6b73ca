//! virtiofsd, the helper that serves a directory to the guest by virtio-fs: one for each directory.
//!
//! It runs as the caller, without any privilege: whoever a file is made by in the guest, on the host it
//! is the caller's. That takes version 1.13 (`--translate-uid`); what Debian 12 has beside QEMU 7.2 is
//! another program, which wants root.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::cache::{self, Kind};
use crate::containment::{Confinement, Reach, Rule};
use crate::descriptors::{duplicate, open_path};
use crate::process::{self, descriptor_path, AtEnd, Process, Spawn};
use crate::spec::{Containment, Share};
use crate::{ask, Error, Result};

/// The oldest version that maps users by itself.
const OLDEST: (u32, u32) = (1, 13);

const HINT: &str = "install the package virtiofsd (Debian 13 has it), or use another channel";

/// Its numbers for the socket that it listens on and the directory that it serves.
const LISTENER: RawFd = process::FIRST_DESCRIPTOR;
const DIRECTORY: RawFd = process::FIRST_DESCRIPTOR + 1;

/// The program.
#[derive(Debug, Clone)]
pub(crate) struct Virtiofsd {
    program: PathBuf,
    owner: (u32, u32),
}

/// One at work. Dropping it ends it; it ends by itself when QEMU has.
#[derive(Debug)]
pub(crate) struct Serving {
    _process: Process,
}

impl Virtiofsd {
    /// The program for these directories.
    ///
    /// # Errors
    /// There is none that can be used, or it cannot serve one of them.
    pub(crate) fn for_shares(backend: &'static str, shares: &[Share]) -> Result<Self> {
        match shares.iter().find(|share| share.host.to_str().is_none()) {
            Some(share) => Err(Error::Incapable {
                backend,
                what: format!(
                    "share '{}' by virtiofs, which takes only names in UTF-8",
                    share.host.display()
                ),
                hint: Some("use --channel 9p"),
            }),
            None => Self::find(),
        }
    }

    /// The first one that can be used, on `PATH` or where distributions have it.
    fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path)
            .filter(|directory| directory.is_absolute())
            .chain(["/usr/libexec", "/usr/lib", "/usr/lib/qemu"].map(PathBuf::from));
        let mut first = None;
        for program in places.map(|directory| directory.join("virtiofsd")) {
            if !program.is_file() {
                continue;
            }
            match Self::inspect(&program) {
                Ok(found) => return Ok(found),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| refuse("virtiofsd", "it is not installed")))
    }

    fn inspect(program: &Path) -> Result<Self> {
        let shown = program.display().to_string();
        let metadata = std::fs::metadata(program).map_err(Error::file("open", program))?;
        let text = match cache::get(Kind::VirtiofsdVersion, &metadata) {
            Some(text) => text,
            None => {
                let text = ask::program(program, "--version");
                let text = text.map_err(|reason| refuse(&shown, &reason))?;
                cache::put(Kind::VirtiofsdVersion, &metadata, &text);
                text
            }
        };
        check(&text).map_err(|reason| refuse(&shown, &reason))?;
        Ok(Virtiofsd {
            program: program.to_owned(),
            owner: (
                nix::unistd::geteuid().as_raw(),
                nix::unistd::getegid().as_raw(),
            ),
        })
    }

    /// Its command line for a directory, for people.
    pub(crate) fn shown(&self, share: &Share) -> Vec<String> {
        let args = arguments(self.owner, share.read_only);
        process::shown(self.program.as_os_str(), &args)
    }

    /// Starts one for `share`, which speaks on `console`, and gives QEMU's end of its socket. Must be called
    /// while this process has one thread.
    ///
    /// # Errors
    /// The directory is gone, or the process cannot be started.
    pub(super) fn serve(
        &self,
        share: &Share,
        console: OwnedFd,
        mode: Containment,
    ) -> Result<(Serving, UnixStream)> {
        let failed = "connect a shared directory";
        let place = tempfile::Builder::new().prefix(".apppot-").tempdir();
        let place = place.map_err(Error::system(failed))?;
        let left = place.path().to_owned();
        let at_end = process::at_end(move || {
            // There only when the launcher was killed meanwhile.
            let _ = std::fs::remove_dir_all(left);
        })
        .map_err(Error::system("start the watch over virtiofsd"))?;
        let (listener, stream) = connected(place.path()).map_err(Error::system(failed))?;
        drop(place);
        let serving = self.serve_at(listener, share, console, mode, at_end)?;
        Ok((serving, stream))
    }

    /// Starts one for `share`, which speaks on `console`, for whoever connects to `listener`. Must be called while
    /// this process has one thread.
    ///
    /// # Errors
    /// The directory is gone, or the process cannot be started.
    pub(crate) fn serve_at(
        &self,
        listener: UnixListener,
        share: &Share,
        console: OwnedFd,
        mode: Containment,
        at_end: AtEnd,
    ) -> Result<Serving> {
        let directory = open_path(&share.host)?;
        let rules = self.rules(&directory, share)?;
        let process = Spawn {
            program: self.program.clone().into(),
            args: arguments(self.owner, share.read_only),
            env: Vec::new(),
            descriptors: vec![(LISTENER, listener.into()), (DIRECTORY, directory)],
            console,
            cpu: None,
            fixed_addresses: false,
            confinement: Confinement::of_contents(&rules, mode)?,
            at_end,
        }
        .start()
        .map_err(Error::file("start", &self.program))?;
        Ok(Serving { _process: process })
    }

    /// What its process may reach: its own parts, and the directory.
    fn rules(&self, directory: &OwnedFd, share: &Share) -> Result<Vec<Rule>> {
        let mut rules = vec![Rule {
            file: duplicate(directory.as_fd())?,
            reach: match share.read_only {
                true => Reach::Read,
                false => Reach::Write,
            },
        }];
        let parts = [
            ("/lib", Reach::Execute),
            ("/lib64", Reach::Execute),
            ("/usr/lib", Reach::Execute),
            ("/usr/lib64", Reach::Execute),
            ("/etc/ld.so.cache", Reach::Read),
            // A limit is read in /proc/sys, whose inodes come and go: rules hold for others.
            ("/proc", Reach::Read),
            ("/dev/urandom", Reach::Read),
        ];
        let parts = parts.map(|(path, reach)| (Path::new(path), reach));
        let own = [(self.program.as_path(), Reach::Execute)];
        for (path, reach) in own.into_iter().chain(parts) {
            if path.exists() {
                let file = open_path(path)?;
                rules.push(Rule { file, reach });
            }
        }
        Ok(rules)
    }
}

/// A socket that listens and one that is connected to it. Its name is in a directory of ours alone, and gone
/// when this returns: nobody else can connect.
fn connected(place: &Path) -> std::io::Result<(UnixListener, UnixStream)> {
    let path = place.join("socket");
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    std::fs::remove_file(&path)?;
    Ok((listener, stream))
}

/// Its arguments, for files that are to be these user's and group's.
fn arguments(owner: (u32, u32), read_only: bool) -> Vec<OsString> {
    let all = |id: u32| format!("squash-guest:0:{id}:{}", u32::MAX);
    let mut words = vec![
        format!("--fd={LISTENER}"),
        format!("--shared-dir={}", descriptor_path(DIRECTORY)),
        // Namespaces take privileges; Landlock confines it.
        String::from("--sandbox=none"),
        format!("--translate-uid={}", all(owner.0)),
        format!("--translate-gid={}", all(owner.1)),
        // The limit is the caller's.
        String::from("--rlimit-nofile=0"),
        String::from("--log-level=error"),
    ];
    if read_only {
        words.push(String::from("--readonly"));
    }
    words.into_iter().map(OsString::from).collect()
}

fn refuse(program: &str, reason: &str) -> Error {
    Error::NoProgram {
        program: program.to_owned(),
        reason: reason.to_owned(),
        hint: HINT,
    }
}

/// Whether `virtiofsd 1.13.2`, as it says to `--version`, is new enough.
fn check(text: &str) -> std::result::Result<(), String> {
    let version = text.trim().strip_prefix("virtiofsd ").unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        return Err(String::from(
            "it is QEMU's own of before 8.0, which cannot do without privileges",
        ));
    };
    let (least_major, least_minor) = OLDEST;
    match (major, minor) >= OLDEST {
        true => Ok(()),
        false => Err(format!(
            "it is version {version}, and {least_major}.{least_minor} is the oldest that works"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn old_and_other_programs_are_refused() {
        for fine in ["virtiofsd 1.13.2\n", "virtiofsd 1.13.0", "virtiofsd 2.0.1"] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        let reason = |text| check(text).unwrap_err();
        assert!(reason("virtiofsd 1.12.0").contains("1.13 is the oldest"));
        assert!(reason("virtiofsd version 7.2.22 (Debian)").contains("QEMU's own"));
        assert!(reason("").contains("QEMU's own"));
    }

    #[test]
    fn the_socket_has_no_name() {
        let place = tempfile::tempdir().unwrap();
        let (listener, mut stream) = connected(place.path()).unwrap();
        assert_eq!(place.path().read_dir().unwrap().count(), 0);
        stream.write_all(b"x").unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
