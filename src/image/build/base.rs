//! The base: the distribution's packages, downloaded and unpacked by mmdebstrap as an ordinary user. No
//! script of theirs runs on this host.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{bail, Context, Result};
use apppot_backends::process::{at_end, AtEnd};

use super::recipe::Recipe;
use crate::failure::hinted;

/// What of packages is not needed to run jobs; licences stay.
const DOCUMENTATION: [&str; 5] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
];

/// Makes links of the directories that have moved below /usr, and takes packages from the cache.
const BEFORE: &str = r#"set -e
for name in bin lib lib64 sbin; do mkdir -p "$1/usr/$name"; ln -s "usr/$name" "$1/$name"; done
mkdir -p "$1/var/cache/apt/archives"
find "$APPPOT_PACKAGES" -name '*.deb' -exec cp -t "$1/var/cache/apt/archives" {} +"#;

/// Puts packages into the cache; each appears there when it is complete.
const AFTER: &str = r#"set -e
cd "$1/var/cache/apt/archives"
for package in *.deb; do
    if [ -e "$APPPOT_PACKAGES/$package" ]; then continue; fi
    cp "$package" "$APPPOT_PACKAGES/$package.$$" && mv "$APPPOT_PACKAGES/$package.$$" "$APPPOT_PACKAGES/$package"
done"#;

/// A download that runs. Whatever ends us, it ends as well, and what it has written is removed.
pub(super) struct Bootstrap {
    child: Child,
    watch: AtEnd,
    room: tempfile::TempDir,
}

impl Bootstrap {
    /// Prepares a download. To be called before there is a second thread.
    pub(super) fn start(recipe: &Recipe, transcript: &File) -> Result<Self> {
        let room = tempfile::Builder::new().prefix("apppot-build-").tempdir();
        let room = room.context("cannot make a temporary directory")?;
        // apt reads as a user of its own, if root calls it.
        let shared = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(room.path(), shared)?;
        let path = room.path().to_owned();
        let watch = at_end(move || {
            let _ = std::fs::remove_dir_all(path);
        });
        let watch = watch.context("cannot start the watch over a temporary directory")?;
        let packages = cache()?;
        let mut command = Command::new("mmdebstrap");
        command
            .args(words(recipe)?)
            .env("APPPOT_PACKAGES", packages)
            .env("TMPDIR", room.path())
            .env("LC_ALL", "C")
            .env("PATH", super::super::tools::path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(transcript.try_clone()?)
            .process_group(0);
        let child = command.spawn().map_err(|error| {
            hinted(
                format!("packages are fetched by mmdebstrap: {error}"),
                "install mmdebstrap (and debian-archive-keyring where this is no Debian)",
            )
        })?;
        watch.watch(Some(child.id().try_into()?))?;
        Ok(Bootstrap { child, watch, room })
    }

    /// Lets `read` read the base as a tar archive, and waits for the end.
    pub(super) fn read(self, read: impl FnOnce(&mut ChildStdout) -> Result<()>) -> Result<()> {
        let Bootstrap {
            mut child,
            watch,
            room,
        } = self;
        let mut pipe = child.stdout.take().context("mmdebstrap has no output")?;
        let done = read(&mut pipe);
        // When there is more, it was not mmdebstrap that failed first.
        let ours = done.is_err() && pipe.read(&mut [0]).is_ok_and(|len| len > 0);
        drop(pipe);
        let status = child.wait().context("cannot wait for mmdebstrap")?;
        watch.watch(None)?;
        room.close()
            .context("cannot remove a temporary directory")?;
        match status.success() || ours {
            true => done,
            false => bail!("mmdebstrap: {status}"),
        }
    }
}

/// Where packages stay for the next build.
fn cache() -> Result<PathBuf> {
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let home = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let home = home.context("there is no place for packages: HOME is not set")?;
    let directory = home.join("apppot/packages");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make '{}'", directory.display()))?;
    Ok(directory)
}

/// The arguments of mmdebstrap.
fn words(recipe: &Recipe) -> Result<Vec<OsString>> {
    let suite = match &recipe.suite {
        Some(suite) => suite.clone(),
        None => own_suite().unwrap_or_else(|| String::from("stable")),
    };
    let mut words: Vec<String> = ["--mode=chrootless", "--variant=extract", "--format=tar"]
        .map(String::from)
        .to_vec();
    words.push(String::from("--skip=cleanup/apt/cache"));
    // Newer ones refuse this to root, for what packages' scripts could do to the host. None is run here.
    words.push(String::from("--skip=check/chrootless"));
    words.push(format!("--setup-hook={BEFORE}"));
    words.push(format!("--customize-hook={AFTER}"));
    // Else the package that moves directories below /usr comes with all of Perl.
    for pattern in ["?essential", "?exact-name(usr-is-merged)"] {
        words.push(format!("--include={pattern}"));
    }
    let packages = recipe.packages.iter();
    words.extend(packages.map(|name| format!("--include={name}")));
    if recipe.user.is_some() {
        words.push(String::from("--include=passwd"));
    }
    if !recipe.documentation {
        words.extend(DOCUMENTATION.map(|rule| format!("--dpkgopt={rule}")));
    }
    let config = output_of("apt-config", &["dump", "Acquire"]).unwrap_or_default();
    words.extend(proxies(&config).map(|line| format!("--aptopt={line}")));
    words.push(suite.clone());
    words.push(String::from("-"));
    match &recipe.mirror {
        Some(mirror) => words.push(format!("deb {mirror} {suite} main")),
        None => {
            let known = output_of("apt-get", &["--print-uris", "update"]).unwrap_or_default();
            words.extend(sources(&known, &suite));
        }
    }
    Ok(words.into_iter().map(OsString::from).collect())
}

/// What a program of this host prints, if there is one.
fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().ok()?;
    let mut text = String::new();
    let read = child.stdout.take()?.take(1 << 20).read_to_string(&mut text);
    child.wait().ok()?;
    read.ok().map(|_| text)
}

/// The release of this machine, if it is a Debian.
fn own_suite() -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/etc/os-release")).ok()?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_matches('"').to_owned())
    };
    value("VERSION_CODENAME=").filter(|_| value("ID=").is_some_and(|id| id == "debian"))
}

/// How apt reaches the network here. The image does not keep it.
fn proxies(config: &str) -> impl Iterator<Item = &str> {
    let is_proxy = |line: &&str| {
        let name = line.split_whitespace().next().unwrap_or_default();
        name.ends_with("::Proxy") || name.ends_with("::Proxy-Auto-Detect")
    };
    config.lines().filter(is_proxy)
}

/// Where this machine has the packages of a release from, as lines of sources.list(5), with its updates.
/// None: mmdebstrap knows the distribution's own place.
fn sources(uris: &str, suite: &str) -> Vec<String> {
    let found = |name: &str| {
        let end = format!("/dists/{name}/InRelease'");
        let mut lines = uris.lines();
        let uri = lines.find_map(|line| Some(line.strip_prefix('\'')?.split_once(&end)?.0))?;
        uri.starts_with("http")
            .then(|| format!("deb {uri} {name} main"))
    };
    let Some(release) = found(suite) else {
        return Vec::new();
    };
    let rest = ["-updates", "-security"].map(|part| found(&format!("{suite}{part}")));
    std::iter::once(release)
        .chain(rest.into_iter().flatten())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_come_from_where_the_machine_has_them_from() {
        let uris = "\
'http://a.example/debian/dists/bookworm/InRelease' a.example_bookworm_InRelease 0 \n\
'http://a.example/debian/dists/bookworm-updates/InRelease' x 0 \n\
'https://nodes.example/dists/nodistro/InRelease' y 0 \n\
'http://b.example/debian-security/dists/bookworm-security/InRelease' z 0 \n";
        let expected = [
            "deb http://a.example/debian bookworm main",
            "deb http://a.example/debian bookworm-updates main",
            "deb http://b.example/debian-security bookworm-security main",
        ];
        assert_eq!(sources(uris, "bookworm"), expected);
        assert!(sources(uris, "sid").is_empty());
    }

    #[test]
    fn only_proxies_of_apts_configuration_are_taken() {
        let config = "Acquire \"\";\nAcquire::http::Proxy \"http://p:3128\";\nAcquire::Languages:: \"none\";\n";
        let found: Vec<&str> = proxies(config).collect();
        assert_eq!(found, ["Acquire::http::Proxy \"http://p:3128\";"]);
    }
}
