//! Where kernels are looked for when nobody names one.

use std::path::{Path, PathBuf};

use crate::cache::absolute_variable;

/// Places for a kernel of AppPot's own with this file name, in order: beside the program, where `make install`
/// puts it whatever the PREFIX, where it is built, and the system's.
pub(crate) fn places(name: &str) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let exe = std::env::current_exe().ok();
    if let Some(directory) = exe.as_deref().and_then(Path::parent) {
        places.push(directory.join(name));
        let prefix = directory.parent();
        places.extend(prefix.map(|prefix| prefix.join("lib/apppot").join(name)));
    }
    let data = absolute_variable("XDG_DATA_HOME")
        .or_else(|| absolute_variable("HOME").map(|home| home.join(".local/share")));
    places.extend(data.map(|data| data.join("apppot").join(name)));
    for system in ["/usr/local/lib/apppot", "/usr/lib/apppot"] {
        let path = Path::new(system).join(name);
        if !places.contains(&path) {
            places.push(path);
        }
    }
    places
}
