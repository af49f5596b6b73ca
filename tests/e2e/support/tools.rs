//! Images and files that tests need.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{processes, Job};

/// Runs a tool that must succeed.
pub(crate) fn tool<A: AsRef<OsStr>>(program: &str, args: &[A]) -> String {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let mut command = Command::new(program);
    let output = processes::output(command.args(args).env("PATH", path));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {} {stderr}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Copies a file with holes.
pub(crate) fn copy_sparse(from: &Path, to: &Path) {
    let options = ["--sparse=always", "--reflink=auto", "--preserve=mode"];
    tool(
        "cp",
        &[
            &options.map(OsStr::new)[..],
            &[from.as_os_str(), to.as_os_str()],
        ]
        .concat(),
    );
}

pub(crate) fn sha256(path: &Path) -> String {
    let text = tool("sha256sum", &["--", path.to_str().unwrap()]);
    text.split_whitespace().next().unwrap().to_owned()
}

/// Programs of the small root filesystem.
const PROGRAMS: [&str; 12] = [
    "sh", "cat", "ls", "uname", "id", "mkdir", "sleep", "stat", "env", "chmod", "rm", "true",
];

/// Makes a root directory with a shell, a few programs, and `/etc/name`, which holds `name`.
pub(crate) fn small_root(job: &Job, name: &str) -> PathBuf {
    let root = job.beside(name);
    for directory in [
        "bin", "etc", "dev", "proc", "sys", "run", "tmp", "root", "usr/bin", "var/lib",
    ] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for program in PROGRAMS {
        add_program(&root, program);
    }
    fs::write(root.join("etc/name"), name).unwrap();
    tool("chown", &["-R", &job.owner(), root.to_str().unwrap()]);
    root
}

/// Adds a program of this machine's to a root directory.
pub(crate) fn add_program(root: &Path, program: &str) {
    let places = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"];
    let from = places.map(|directory| Path::new(directory).join(program));
    let from = from.iter().find(|path| path.exists());
    let from = from.unwrap_or_else(|| panic!("install {program}"));
    install(from, &root.join("bin").join(program));
    for library in libraries(from) {
        install(&library, &root.join(library.strip_prefix("/").unwrap()));
    }
}

fn install(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if !to.exists() {
        fs::copy(from, to).unwrap();
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// What ldd(1) names.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let text = tool("ldd", &[program]);
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

/// A raw ext4 image of a small root.
pub(crate) fn ext4(job: &Job, name: &str) -> PathBuf {
    into_ext4(job, &small_root(job, name))
}

/// A raw ext4 image of a root directory, which is removed.
pub(crate) fn into_ext4(job: &Job, root: &Path) -> PathBuf {
    let image = root.with_extension("img");
    let words = ["-q", "-t", "ext4", "-F", "-d"].map(OsStr::new);
    let rest = [root.as_os_str(), image.as_os_str(), OsStr::new("48M")];
    tool("mke2fs", &[&words[..], &rest[..]].concat());
    fs::remove_dir_all(root).unwrap();
    job.give(&image);
    image
}

/// A whole disk with two partitions, the second of which is the root.
pub(crate) fn disk(job: &Job, name: &str, label: &str) -> PathBuf {
    let partition = ext4(job, name);
    let image = job.beside(&format!("{name}-disk.img"));
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let script = job.beside("sfdisk-script");
    let table = format!("label: {label}\nstart=2048, size=2048\nstart=8192, size=98304\n");
    fs::write(&script, table).unwrap();
    let command = format!("sfdisk -q '{}' <'{}'", image.display(), script.display());
    tool("sh", &["-c", &command]);
    let (from, to) = (
        format!("if={}", partition.display()),
        format!("of={}", image.display()),
    );
    let options = ["bs=1M", "seek=4", "conv=notrunc,sparse", "status=none"];
    tool(
        "dd",
        &[&[from.as_str(), to.as_str()][..], &options[..]].concat(),
    );
    fs::remove_file(partition).unwrap();
    job.give(&image);
    image
}

/// A whole disk that says of itself that it boots, of `tools::ext4`'s root; with holes.
pub(crate) fn loaderless_disk(job: &Job, name: &str) -> PathBuf {
    let partition = ext4(job, name);
    let image = job.beside(&format!("{name}-disk.img"));
    fs::File::create(&image)
        .unwrap()
        .set_len((60 << 20) + 512)
        .unwrap();
    let table = "label: gpt\nstart=8192, size=98304, name=apppot-root\n";
    let script = job.put(format!("{name}.sfdisk"), table);
    let command = format!("sfdisk -q '{}' <'{}'", image.display(), script.display());
    tool("sh", &["-c", &command]);
    let copy = format!(
        "dd if='{}' of='{}' bs=1M seek=4 conv=notrunc,sparse status=none",
        partition.display(),
        image.display()
    );
    tool("sh", &["-c", &copy]);
    for path in [partition, script] {
        fs::remove_file(path).unwrap();
    }
    job.give(&image);
    image
}

/// Where a program is, its own file rather than links to it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find_map(|file| fs::canonicalize(file).ok())
}
