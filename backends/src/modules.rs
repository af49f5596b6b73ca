//! Kernel modules: what must be loaded before the root can be mounted.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The module files for `wanted` (module names) and what they depend on, in the order of loading,
/// found through `modules.dep` in the kernel's module directory.
///
/// # Errors
/// The list is missing, or a module is not in it: its name.
pub(crate) fn resolve(directory: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let path = directory.join("modules.dep");
    let text = std::fs::read_to_string(&path).map_err(Error::file("read module list", &path))?;
    let files = order(&text, wanted).map_err(|name| Error::File {
        what: "find kernel module",
        path: directory.join(name),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    Ok(files.iter().map(|file| directory.join(file)).collect())
}

/// The files of `wanted` (module names) and of what they depend on, in the order of loading, as `list`, a
/// kernel's `modules.dep`, names them.
///
/// # Errors
/// A module is not in the list: its name.
pub fn order<'a>(list: &'a str, wanted: &[&str]) -> std::result::Result<Vec<&'a str>, String> {
    let mut order = Vec::new();
    for name in wanted {
        for file in closure(list, name).ok_or_else(|| (*name).to_owned())? {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

/// The modules at `paths`, by name and content.
///
/// # Errors
/// One cannot be read.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    paths
        .iter()
        .map(|path| {
            let content = std::fs::read(path).map_err(Error::file("read kernel module", path))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok((name.into_owned(), content))
        })
        .collect()
}

/// Whether `modules.dep` or `modules.builtin` of a kernel names the module.
#[must_use]
pub fn lists(text: &str, name: &str) -> bool {
    text.lines()
        .filter_map(|line| line.split(':').next())
        .any(|file| module_name(file) == name.replace('-', "_"))
}

/// One line of `modules.dep` names a module and everything that it needs, the nearest first
/// (modules.dep(5)): loading goes from right to left.
fn closure<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    text.lines().find_map(|line| {
        let (module, needs) = line.split_once(':')?;
        (module_name(module) == name.replace('-', "_"))
            .then(|| needs.split_whitespace().rev().chain([module]).collect())
    })
}

/// `kernel/fs/overlayfs/overlay.ko.xz` → `overlay`.
fn module_name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    let name = file.split(".ko").next().unwrap_or(file);
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/fs/overlayfs/overlay.ko:
kernel/fs/erofs/erofs.ko: kernel/lib/lz4.ko kernel/lib/libcrc32c.ko
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz
kernel/drivers/a-b.ko:
";

    #[test]
    fn needs_come_first() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("modules.dep"), DEP).unwrap();
        let names = |wanted: &[&str]| -> Vec<String> {
            resolve(directory.path(), wanted)
                .unwrap()
                .iter()
                .map(|path| module_name(path.to_str().unwrap()))
                .collect()
        };
        assert_eq!(names(&["overlay"]), ["overlay"]);
        assert_eq!(
            names(&["erofs", "overlay"]),
            ["libcrc32c", "lz4", "erofs", "overlay"]
        );
        assert_eq!(names(&["9p"]), ["9pnet", "9p"]);
        assert_eq!(names(&["a-b"]), ["a_b"]);
        let error = resolve(directory.path(), &["zfs"]).unwrap_err();
        assert!(error.to_string().contains("zfs"), "{error}");
    }
}
