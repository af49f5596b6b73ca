//! `apppot-snap`, the agent under another name: snapshots made in the running appliance.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use apppot_snapshot::archive::{self, Archive, Manifest};
use apppot_snapshot::base::{Base, Source};
use apppot_snapshot::diff::compare;
use apppot_snapshot::merge::{merge, Options};
use apppot_snapshot::output::Unfinished;
use apppot_snapshot::rules::Rules;
use apppot_snapshot::show::{Line, Name};
use apppot_snapshot::tree::{record, Directory, Listing};
use apppot_snapshot::{hex, DEFAULT_BASE, DEFAULT_CHANGES};

const USAGE: &str = "\
usage: apppot-snap COMMAND [OPTION]... [FILE]

  base [FILE]      record the state of the system (default: apppot.base)
  changes [FILE]   write what has changed since to an archive (default: apppot.changes)
  merge [FILE]     merge such an archive into the system
  inspect [FILE]   show what is in one

  -b, --base FILE      changes: the recorded base (default: apppot.base)
      --exclude PATTERN, --include PATTERN
                       changes: leave out, or take, what matches; so do the lines of ./.apppotignore
      --any-base       merge: even an archive that was made for another base
  -r, --root DIR       another system than the running one
  -n, --dry-run        say what would be done, and write nothing
  -v, --verbose        show every path
  -h, --help, -V, --version
";

/// Runs the command line.
pub(crate) fn main() -> u8 {
    // A reader that has seen enough ends this program, as it does any other.
    // SAFETY: there is no second thread yet, and no handler of ours.
    let _ = unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGPIPE,
            nix::sys::signal::SigHandler::SigDfl,
        )
    };
    match Call::parse(std::env::args_os().skip(1)).and_then(|call| call.run()) {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("apppot-snap: {}", printable(&message));
            1
        }
    }
}

/// Names of files may come from anywhere, and hold what a terminal would obey.
fn printable(text: &str) -> String {
    let is_safe = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars()
        .map(|c| if is_safe(c) { c } else { '?' })
        .collect()
}

/// What was asked for.
#[derive(Debug)]
struct Call {
    command: String,
    file: Option<PathBuf>,
    base: PathBuf,
    root: PathBuf,
    patterns: Vec<String>,
    any_base: bool,
    dry_run: bool,
    verbose: bool,
}

impl Call {
    fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut call = Call {
            command: String::new(),
            file: None,
            base: PathBuf::from(DEFAULT_BASE),
            root: PathBuf::from("/"),
            patterns: Vec::new(),
            any_base: false,
            dry_run: false,
            verbose: false,
        };
        let mut args = args.flat_map(spread);
        while let Some(argument) = args.next() {
            let mut value = || {
                let missing = || format!("{} needs a value", argument.to_string_lossy());
                args.next().ok_or_else(missing)
            };
            match argument.to_str() {
                Some("-b" | "--base") => call.base = value()?.into(),
                Some("-r" | "--root") => call.root = value()?.into(),
                Some("--exclude") => call.patterns.push(text(value()?)?),
                Some("--include") => call.patterns.push(format!("!{}", text(value()?)?)),
                // The launcher's word for it is known, too.
                Some("--any-base" | "--changes-any-base") => call.any_base = true,
                Some("-n" | "--dry-run") => call.dry_run = true,
                Some("-v" | "--verbose") => call.verbose = true,
                Some("-h" | "--help") => call.command = String::from("help"),
                Some("-V" | "--version") => call.command = String::from("version"),
                Some(option) if option.starts_with('-') && option.len() > 1 => {
                    return Err(format!("there is no option '{option}'; --help shows them"));
                }
                Some(command) if call.command.is_empty() => command.clone_into(&mut call.command),
                _ if call.file.is_none() && !call.command.is_empty() => {
                    call.file = Some(argument.into());
                }
                _ => return Err(format!("'{}' is too much", argument.to_string_lossy())),
            }
        }
        Ok(call)
    }

    fn run(&self) -> Result<(), String> {
        match self.command.as_str() {
            "base" => self.record_base(),
            "changes" => self.write_changes(),
            "merge" => self.merge(),
            "inspect" => self.inspect(),
            // What the machine does that only merges.
            "sync" => {
                nix::unistd::sync();
                Ok(())
            }
            "help" => {
                print!("{USAGE}");
                Ok(())
            }
            "version" => {
                println!("apppot-snap {}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
            "" => Err(format!("no command\n{USAGE}")),
            other => Err(format!("there is no command '{other}'; --help shows them")),
        }
    }

    /// Where results go, or come from.
    fn file(&self, default: &str) -> PathBuf {
        self.file.clone().unwrap_or_else(|| PathBuf::from(default))
    }

    fn listing(&self, rules: &Rules) -> Result<(Directory, Listing), String> {
        let tree = Directory::open(&self.root, false).map_err(full)?;
        let listing = record(&tree, rules, &|_, _| {}).map_err(full)?;
        Ok((tree, listing))
    }

    fn record_base(&self) -> Result<(), String> {
        let (_, listing) = self.listing(&Rules::default())?;
        let entries = listing.found.into_iter().map(|found| found.entry);
        let base = Base::new(entries.collect(), Source::Guest);
        if self.verbose {
            for entry in &base.entries {
                println!("{}", Name(&entry.path));
            }
        }
        let path = self.file(DEFAULT_BASE);
        if !self.dry_run {
            replace(&path, &[], |file| base.write(file).map_err(full))?;
        }
        println!("{}: {} files", path.display(), base.entries.len());
        Ok(())
    }

    fn write_changes(&self) -> Result<(), String> {
        let file = File::open(&self.base)
            .map_err(|error| format!("cannot open the base '{}': {error}", self.base.display()))?;
        let base = Base::read(file).map_err(|error| in_file(&self.base, &error))?;
        let mut rules = Rules::default();
        if let Ok(lines) = std::fs::read_to_string(".apppotignore") {
            rules.add_lines(&lines).map_err(full)?;
        }
        for pattern in &self.patterns {
            rules.add(pattern).map_err(full)?;
        }
        let (tree, listing) = self.listing(&rules)?;
        if self.dry_run {
            let changes = compare(&base, &listing, &rules);
            show(&Manifest::new(base.identity, changes), true);
            return Ok(());
        }
        let path = self.file(DEFAULT_CHANGES);
        let mut written = None;
        replace(&path, &[&self.base], |file| {
            written = Some(archive::write(file, &base, &tree, &listing, &rules).map_err(full)?);
            Ok(())
        })?;
        if let Some(written) = written {
            show(&written.manifest, self.verbose);
            println!("{}: {} bytes", path.display(), written.len);
        }
        Ok(())
    }

    fn open(&self) -> Result<(PathBuf, Archive), String> {
        let path = self.file(DEFAULT_CHANGES);
        let archive = archive::open_file(&path).and_then(Archive::open);
        let archive = archive.map_err(|error| in_file(&path, &error))?;
        Ok((path, archive))
    }

    fn merge(&self) -> Result<(), String> {
        let (path, archive) = self.open()?;
        show(&archive.manifest, self.verbose || self.dry_run);
        if self.dry_run {
            return Ok(());
        }
        let options = Options {
            check_base: !self.any_base,
            ..Options::default()
        };
        let done = merge(archive, &self.root, &options).map_err(|error| in_file(&path, &error))?;
        println!(
            "{} made, {} altered, {} removed",
            done.made, done.altered, done.removed
        );
        Ok(())
    }

    fn inspect(&self) -> Result<(), String> {
        let (path, archive) = self.open()?;
        println!("archive  {}", hex(&archive.id));
        println!("base     {}", hex(&archive.manifest.header.base.tree));
        show(&archive.manifest, true);
        archive.verify().map_err(|error| in_file(&path, &error))
    }
}

/// `--name=value` as two words, `-nv` as `-n -v`.
fn spread(argument: OsString) -> Vec<OsString> {
    let Some(text) = argument.to_str() else {
        return vec![argument];
    };
    if let Some((name, value)) = text.split_once('=').filter(|_| text.starts_with("--")) {
        return vec![name.into(), value.into()];
    }
    match text.strip_prefix('-') {
        Some(flags) if flags.len() > 1 && flags.bytes().all(|flag| b"nv".contains(&flag)) => flags
            .chars()
            .map(|flag| format!("-{flag}").into())
            .collect(),
        _ => vec![argument],
    }
}

fn text(value: OsString) -> Result<String, String> {
    value
        .into_string()
        .map_err(|value| format!("'{}' is not UTF-8 text", value.to_string_lossy()))
}

fn full(error: apppot_snapshot::Error) -> String {
    error.with_hint()
}

fn in_file(path: &Path, error: &apppot_snapshot::Error) -> String {
    format!("'{}': {}", path.display(), error.with_hint())
}

fn show(manifest: &Manifest, every: bool) {
    if every {
        for change in manifest.real_changes() {
            println!("{}", Line(change));
        }
    }
    println!("{} changes", manifest.real_changes().count());
}

/// Writes a file whole or not at all; none of `inputs` is replaced.
fn replace(
    path: &Path,
    inputs: &[&Path],
    write: impl FnOnce(&mut std::io::BufWriter<&File>) -> Result<(), String>,
) -> Result<(), String> {
    let new = Unfinished::beside(path, inputs).map_err(full)?;
    interrupted::remove(new.path());
    let mut file = std::io::BufWriter::new(new.file());
    write(&mut file)?;
    file.flush()
        .map_err(|error| format!("cannot write '{}': {error}", path.display()))?;
    drop(file);
    new.keep().map_err(full)
}

/// A file that is to be gone when a signal ends the program.
mod interrupted {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::sync::OnceLock;

    use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};

    static FILE: OnceLock<CString> = OnceLock::new();

    /// Removes the file at `path` when one of the usual signals ends the program.
    pub(super) fn remove(path: &Path) {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return;
        };
        if FILE.set(path).is_err() {
            return;
        }
        // The handler runs once; the signal that it raises again finds the default action.
        let flags = SaFlags::SA_RESETHAND | SaFlags::SA_NODEFER;
        let action = SigAction::new(SigHandler::Handler(at_signal), flags, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: the handler calls only what may be called in one (signal-safety(7)).
            let _ = unsafe { sigaction(signal, &action) };
        }
    }

    extern "C" fn at_signal(signal: libc::c_int) {
        if let Some(path) = FILE.get() {
            // SAFETY: the text ends in a zero byte and lives as long as the program.
            unsafe { libc::unlink(path.as_ptr()) };
        }
        // SAFETY: raise takes a number.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(args: &[&str]) -> Result<Call, String> {
        Call::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn what_changes_writes_is_what_merge_looks_for() {
        let names = ["changes", "merge", "inspect"]
            .map(|command| call(&[command]).unwrap().file(DEFAULT_CHANGES));
        assert!(names.iter().all(|name| name == Path::new("apppot.changes")));
    }

    #[test]
    fn options_are_understood_or_refused() {
        let parsed = call(&["changes", "-nv", "--base=b=c", "x"]).unwrap();
        assert!(parsed.dry_run && parsed.verbose);
        assert_eq!(parsed.base, Path::new("b=c"));
        assert!(call(&["changes", "-nx", "x"]).is_err());
        let parsed = call(&["-n", "changes", "-v", "out", "--exclude", "*.o"]).unwrap();
        assert!(parsed.dry_run && parsed.verbose);
        assert_eq!(parsed.file, Some(PathBuf::from("out")));
        assert_eq!(parsed.patterns, ["*.o"]);
        assert!(call(&["merge", "a", "b"]).is_err());
        assert!(call(&["changes", "-b"]).is_err());
    }

    #[test]
    fn a_system_s_changes_are_merged_into_another() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            place
                .path()
                .join(name)
                .into_os_string()
                .into_string()
                .unwrap()
        };
        for name in ["one", "two"] {
            std::fs::create_dir_all(place.path().join(name).join("etc")).unwrap();
        }
        let run = |args: &[&str]| call(args).unwrap().run();
        let (one, two, base, changes) = (path("one"), path("two"), path("b"), path("c"));
        run(&["base", "-r", &one, &base]).unwrap();
        std::fs::write(place.path().join("one/etc/new"), "new").unwrap();
        run(&["changes", "-n", "-r", &one, "-b", &base, &changes]).unwrap();
        assert!(!Path::new(&changes).exists());
        run(&["changes", "-r", &one, "-b", &base, &changes]).unwrap();
        run(&["inspect", &changes]).unwrap();
        run(&["merge", "-r", &two, &changes]).unwrap();
        assert_eq!(
            std::fs::read(place.path().join("two/etc/new")).unwrap(),
            b"new"
        );
        assert!(run(&["merge", "-r", &two, "/nonexistent"]).is_err());
    }
}
