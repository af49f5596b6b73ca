//! What runs: the command, or the first of `./apppot-run`, the image's autorun, the image's command, a shell.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use apppot_contract::{Contract, Outcome, Workload};

use crate::accounts::Identity;
use crate::defaults::ImageCommand;

/// A command that has been found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// The file to execute.
    pub(crate) path: PathBuf,
    /// Its arguments, its own name first.
    pub(crate) argv: Vec<OsString>,
    /// Whether it is the user's shell, for want of anything else to run.
    pub(crate) is_shell: bool,
    /// Where it runs.
    pub(crate) directory: PathBuf,
}

/// Decides what runs, with the job's environment for `PATH`, in the job directory.
///
/// # Errors
/// The outcome that the job has when there is no such command, or it cannot be executed.
pub(crate) fn find(
    contract: &Contract,
    image: Option<&ImageCommand>,
    identity: &Identity,
    environment: &[(OsString, OsString)],
) -> Result<Program, Outcome> {
    let jobdir = &contract.jobdir;
    match &contract.workload {
        Workload::Command(argv) => command(argv, environment, jobdir),
        Workload::Default => match (script(jobdir)?, image) {
            (Some(script), _) => Ok(script),
            (None, Some(image)) => {
                let directory = image.directory.as_ref().unwrap_or(jobdir);
                command(&image.argv, environment, directory)
            }
            (None, None) => Ok(shell(identity, jobdir)),
        },
        Workload::Shell => Ok(shell(identity, jobdir)),
    }
}

fn command(
    argv: &[OsString],
    environment: &[(OsString, OsString)],
    directory: &Path,
) -> Result<Program, Outcome> {
    let path = environment.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(OsStr::new(""), |(_, value)| value.as_os_str());
    search(&argv[0], path, directory).map(|path| Program {
        path,
        argv: argv.to_owned(),
        directory: directory.to_owned(),
        is_shell: false,
    })
}

/// Lets the environment say where the program starts.
pub(crate) fn start_in(environment: &mut [(OsString, OsString)], directory: &Path) {
    for (_, value) in environment.iter_mut().filter(|(name, _)| name == "PWD") {
        value.clone_from(&directory.as_os_str().to_owned());
    }
}

/// `./apppot-run`, else the image's own. A script that is there and cannot be executed is a mistake,
/// not none.
fn script(jobdir: &Path) -> Result<Option<Program>, Outcome> {
    for path in [
        jobdir.join("apppot-run"),
        PathBuf::from("/etc/apppot/autorun"),
    ] {
        if let Some(path) = judge(&path, &path.to_string_lossy())? {
            return Ok(Some(Program {
                argv: vec![path.clone().into()],
                path,
                is_shell: false,
                directory: jobdir.to_owned(),
            }));
        }
    }
    Ok(None)
}

/// A login shell: its name starts with a hyphen.
fn shell(identity: &Identity, jobdir: &Path) -> Program {
    let path = [identity.shell.as_path(), Path::new("/bin/bash")]
        .into_iter()
        .find(|path| is_executable(path))
        .unwrap_or(Path::new("/bin/sh"));
    let mut name = OsString::from("-");
    name.push(path.file_name().unwrap_or_default());
    Program {
        path: path.to_owned(),
        argv: vec![name],
        is_shell: true,
        directory: jobdir.to_owned(),
    }
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Looks for `command` as execvp(3) does, relative paths from the job directory.
fn search(command: &OsStr, path: &OsStr, jobdir: &Path) -> Result<PathBuf, Outcome> {
    let shown = command.to_string_lossy();
    let not_found = || Outcome::NotFound {
        reason: format!("{shown}: command not found"),
    };
    if command.is_empty() {
        return Err(not_found());
    }
    if command.as_bytes().contains(&b'/') {
        return judge(&jobdir.join(command), &shown)?.ok_or_else(not_found);
    }
    let mut refused = None;
    for directory in std::env::split_paths(path) {
        match judge(&jobdir.join(directory).join(command), &shown) {
            Ok(Some(path)) => return Ok(path),
            Ok(None) => {}
            Err(outcome) => refused = refused.or(Some(outcome)),
        }
    }
    Err(refused.unwrap_or_else(not_found))
}

/// Whether `path` can be executed; `None` when it does not exist.
fn judge(path: &Path, shown: &str) -> Result<Option<PathBuf>, Outcome> {
    let refuse = |why: &str| {
        Err(Outcome::NotExecutable {
            reason: format!("{shown}: {why}"),
        })
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => refuse("is a directory"),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => refuse("permission denied"),
        Ok(_) => Ok(Some(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            refuse("permission denied")
        }
        Err(_) => Ok(None),
    }
}

/// The outcome of an execve(2) that failed with `error`: the file exists, it has been looked at.
pub(crate) fn refused(program: &Program, error: &io::Error) -> Outcome {
    let shown = program.argv[0].to_string_lossy();
    let reason = match error.raw_os_error() {
        Some(libc::ENOENT) => format!("{shown}: its interpreter is missing"),
        Some(libc::ENOEXEC) => format!("{shown}: is no program of this machine's kind"),
        _ => format!("{shown}: {error}"),
    };
    Outcome::NotExecutable { reason }
}

/// The job's environment: a clean one, what the contract adds, and what describes the job.
pub(crate) fn environment(contract: &Contract, identity: &Identity) -> Vec<(OsString, OsString)> {
    const PATH: &str =
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/apppot-bin";
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &OsStr, value: OsString| {
        variables.retain(|(other, _)| other != name);
        variables.push((name.to_owned(), value));
    };
    let name = OsStr::new;
    set(name("PATH"), PATH.into());
    set(name("HOME"), identity.home.clone().into());
    set(name("USER"), identity.name.clone().into());
    set(name("LOGNAME"), identity.name.clone().into());
    set(name("SHELL"), identity.shell.clone().into());
    set(name("PWD"), contract.jobdir.clone().into());
    if let Some(terminal) = &contract.terminal {
        set(name("TERM"), terminal.term.clone().into());
    }
    if let Some(tmpdir) = &contract.tmpdir {
        set(name("TMPDIR"), tmpdir.clone().into());
    }
    for (variable, value) in &contract.env {
        set(variable, value.clone());
    }
    set(name("APPPOT_ID"), contract.id.clone().into());
    set(name("APPPOT_JOBDIR"), contract.jobdir.clone().into());
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            name: String::from("ada"),
            uid: 1000,
            gid: 1000,
            groups: vec![],
            home: PathBuf::from("/home/ada"),
            shell: PathBuf::from("/bin/sh"),
        }
    }

    fn file(directory: &Path, name: &str, mode: u32) {
        std::fs::write(directory.join(name), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(directory.join(name), std::fs::Permissions::from_mode(mode))
            .unwrap();
    }

    #[test]
    fn commands_are_found_or_refused_as_a_shell_would() {
        let directory = tempfile::tempdir().unwrap();
        let jobdir = directory.path();
        file(jobdir, "good", 0o755);
        file(jobdir, "bad", 0o644);
        let find = |command: &str| search(OsStr::new(command), jobdir.as_os_str(), jobdir);
        assert_eq!(find("good"), Ok(jobdir.join("good")));
        assert_eq!(find("./good"), Ok(jobdir.join("./good")));
        for command in ["bad", "./bad", "/etc"] {
            assert!(
                matches!(find(command), Err(Outcome::NotExecutable { .. })),
                "{command}"
            );
        }
        for command in ["missing", "./missing", "/missing", ""] {
            assert!(
                matches!(find(command), Err(Outcome::NotFound { .. })),
                "{command}"
            );
        }
    }

    #[test]
    fn without_a_command_the_job_directorys_script_runs_and_else_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let contract = Contract {
            jobdir: directory.path().to_owned(),
            ..Contract::default()
        };
        assert_eq!(
            find(&contract, None, &identity(), &[]).unwrap().argv,
            ["-sh"]
        );
        file(directory.path(), "apppot-run", 0o644);
        let refused = find(&contract, None, &identity(), &[]).unwrap_err();
        assert!(
            matches!(refused, Outcome::NotExecutable { .. }),
            "{refused:?}"
        );
        file(directory.path(), "apppot-run", 0o755);
        let program = find(&contract, None, &identity(), &[]).unwrap();
        assert_eq!(program.path, directory.path().join("apppot-run"));
        let contract = Contract {
            workload: Workload::Shell,
            ..contract
        };
        assert_eq!(
            find(&contract, None, &identity(), &[]).unwrap().argv,
            ["-sh"]
        );
    }

    #[test]
    fn the_images_command_runs_where_the_image_says_unless_the_job_directory_has_a_script() {
        let (job, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        file(image.path(), "serve", 0o755);
        let contract = Contract {
            jobdir: job.path().to_owned(),
            ..Contract::default()
        };
        let command = ImageCommand {
            argv: vec!["./serve".into(), "-x".into()],
            directory: Some(image.path().to_owned()),
        };
        let find = || find(&contract, Some(&command), &identity(), &[]).unwrap();
        assert_eq!(find().argv, ["./serve", "-x"]);
        assert_eq!(find().directory, image.path());
        file(job.path(), "apppot-run", 0o755);
        assert_eq!(find().directory, job.path());
    }

    #[test]
    fn the_environment_is_clean_and_the_contracts_words_win() {
        let contract = Contract {
            id: String::from("job7"),
            env: vec![
                ("PATH".into(), "/opt/bin".into()),
                ("EMPTY".into(), "".into()),
            ],
            ..Contract::default()
        };
        let variables = environment(&contract, &identity());
        let get = |name: &str| {
            let mut values = variables.iter().filter(|(other, _)| other == name);
            let value = values.next().map(|(_, value)| value.to_str().unwrap());
            assert!(values.next().is_none(), "{name} twice");
            value
        };
        assert_eq!(get("PATH"), Some("/opt/bin"));
        assert_eq!(get("HOME"), Some("/home/ada"));
        assert_eq!(get("EMPTY"), Some(""));
        assert_eq!(get("APPPOT_ID"), Some("job7"));
        assert_eq!(get("TERM"), None);
    }
}
