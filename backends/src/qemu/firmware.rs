//! Machines whose image starts itself: firmware, which starts the image's boot loader, takes the place of
//! our kernel and initramfs, and the contract goes by fw_cfg (`docs/specs/fw_cfg.rst`).

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use apppot_contract::{document, Contract};
use nix::sys::memfd::{memfd_create, MFdFlags};

use super::arguments::{descriptor, file, switch};
use super::kernel::Kernel;
use crate::descriptors::Descriptors;
use crate::process::descriptor_path;
use crate::spec::{Firmware, MachineSpec};
use crate::{Error, Result};

/// The item, below `opt/` as the specification asks, whose file the agent looks for.
pub(crate) const ITEM: &str = "opt/org.apppot/contract";

/// UEFI firmware: OVMF's two files, where distributions have them.
const OVMF: &[(&str, &str)] = &[
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
];

const HINT: &str = "install the package ovmf, or use --firmware bios";

/// What starts the guest.
#[derive(Debug)]
pub(crate) enum Start {
    /// QEMU loads our kernel.
    Kernel(Kernel),
    /// QEMU's own BIOS.
    Bios,
    /// UEFI firmware.
    Uefi(Ovmf),
}

impl Start {
    /// What `spec` asks for; a kernel has the drivers `needed`.
    ///
    /// # Errors
    /// It is not to be had here.
    pub(crate) fn find(spec: &MachineSpec, needed: &[&str]) -> Result<Self> {
        Ok(match spec.firmware {
            Firmware::None => Start::Kernel(Kernel::find(spec.kernel.as_deref(), needed)?),
            Firmware::Bios => Start::Bios,
            Firmware::Uefi => Start::Uefi(Ovmf::find()?),
        })
    }

    /// The kernel, if it is ours.
    pub(crate) fn kernel(&self) -> Option<&Kernel> {
        match self {
            Start::Kernel(kernel) => Some(kernel),
            Start::Bios | Start::Uefi(_) => None,
        }
    }

    /// The file that QEMU opens by its path.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Start::Kernel(kernel) => Some(&kernel.path),
            Start::Bios => None,
            Start::Uefi(ovmf) => Some(&ovmf.code),
        }
    }

    /// The descriptors that it needs beside the plan's.
    ///
    /// # Errors
    /// There is no room for them, or a file cannot be read.
    pub(super) fn give(&self, given: &mut Descriptors, contract: Option<&str>) -> Result<()> {
        if let Start::Uefi(ovmf) = self {
            let variables = in_memory(c"apppot-variables", &ovmf.variables()?)?;
            given.add(descriptor::VARIABLES, variables);
        }
        if let Some(text) = contract {
            given.add(
                descriptor::CONTRACT,
                in_memory(c"apppot-contract", text.as_bytes())?,
            );
        }
        Ok(())
    }
}

/// Its name, for people.
impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Kernel(kernel) => write!(f, "{}", kernel.path.display()),
            Start::Bios => f.write_str("the image's own, by BIOS"),
            Start::Uefi(_) => f.write_str("the image's own, by UEFI"),
        }
    }
}

/// UEFI firmware in files.
#[derive(Debug, Clone)]
pub(crate) struct Ovmf {
    /// The program, which is only read.
    pub(crate) code: PathBuf,
    /// What its variables are before the first boot. Every machine has its own.
    pub(crate) variables: PathBuf,
}

impl Ovmf {
    /// The first that is installed.
    ///
    /// # Errors
    /// There is none.
    fn find() -> Result<Self> {
        let found = OVMF.iter().find(|(code, variables)| {
            [code, variables]
                .iter()
                .all(|path| Path::new(path).is_file())
        });
        let (code, variables) = found.ok_or_else(|| Error::NoProgram {
            program: String::from("OVMF"),
            reason: String::from("UEFI firmware for QEMU is not installed"),
            hint: HINT,
        })?;
        Ok(Ovmf {
            code: code.into(),
            variables: variables.into(),
        })
    }

    /// The variables of one machine.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn variables(&self) -> Result<Vec<u8>> {
        let path = &self.variables;
        std::fs::read(path).map_err(Error::file("read firmware", path))
    }

    /// `-machine`, `-blockdev`: as flash memory.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let code = self.code.display();
        [
            switch(
                "-blockdev",
                format!("driver=file,node-name=firmware,filename={code},read-only=on,locking=off"),
            ),
            file("variables", descriptor::VARIABLES, true),
            switch("-machine", "pflash0=firmware,pflash1=variables"),
        ]
        .concat()
    }
}

/// `-fw_cfg`: the contract.
pub(super) fn contract_arguments() -> Vec<OsString> {
    let path = descriptor_path(descriptor::CONTRACT);
    switch("-fw_cfg", format!("name={ITEM},file={path}")).into()
}

/// The contract's document.
///
/// # Errors
/// The contract cannot be written so that the agent reads the same, or is too long.
pub(crate) fn document(contract: &Contract) -> Result<String> {
    contract.check()?;
    let text = document::encode(contract);
    // Reading it back is how its length is checked, too.
    document::decode(text.as_bytes())?;
    Ok(text)
}

/// Keeps `content` in memory, as a file.
///
/// # Errors
/// There is no room.
fn in_memory(name: &std::ffi::CStr, content: &[u8]) -> Result<OwnedFd> {
    let failed = "keep firmware in memory";
    let file = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(Error::system(failed))?;
    let mut file = File::from(file);
    file.write_all(content).map_err(Error::system(failed))?;
    Ok(file.into())
}
