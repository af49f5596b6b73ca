//! Kernel modules that the launcher put into the initramfs.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::failure::{Failure, Step};

/// Loads every module in `directory`, by name order, which is the order of need. No directory, no
/// modules. One that fails does not keep others from being loaded.
pub(crate) fn load_all(directory: &Path) -> Result<(), Failure> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Ok(());
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let load = |path| load(path).step(format!("loading the kernel module {}", Path::display(path)));
    let results: Vec<_> = paths.iter().map(|path| load(path)).collect();
    results.into_iter().collect()
}

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h: the kernel decompresses.
const COMPRESSED: libc::c_int = 4;

fn load(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    let plain = path.extension().is_some_and(|extension| extension == "ko");
    let flags = if plain { 0 } else { COMPRESSED };
    let parameters: &CStr = c"";
    // SAFETY: an open descriptor and a NUL-terminated string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            flags,
        )
    };
    match result {
        0 => Ok(()),
        _ => match std::io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            // A driver of something that this machine has not. Where it is needed it will be missed.
            error if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            error => Err(error),
        },
    }
}
