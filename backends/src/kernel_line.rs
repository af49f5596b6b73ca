//! The guest kernel's command line: the backend's words, the user's, and the contract.

use std::ffi::{OsStr, OsString};

use apppot_contract::cmdline;
use apppot_contract::Contract;

use crate::spec::MachineSpec;
use crate::{Capabilities, Result};

/// A command line, and what did not fit.
#[derive(Debug, Default)]
pub(crate) struct KernelLine {
    /// Its words.
    pub(crate) words: Vec<OsString>,
    /// The contract's document, when it goes by the link.
    pub(crate) document: Option<String>,
}

impl KernelLine {
    /// `words` of the backend's, the raw ones of `spec`, and `contract`, in as many bytes as `can`
    /// says less the `taken` ones.
    ///
    /// # Errors
    /// They do not fit, even with the contract elsewhere.
    pub(crate) fn make(
        words: Vec<String>,
        spec: &MachineSpec,
        contract: &Contract,
        can: &Capabilities,
        taken: usize,
    ) -> Result<Self> {
        let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        words.extend(spec.extra.iter().cloned());
        let taken = taken + length(&words);
        let room = can.command_line.saturating_sub(taken);
        let encoded = cmdline::encode(contract, room, can.carrier)?;
        words.extend(encoded.words.into_iter().map(OsString::from));
        Ok(KernelLine {
            words,
            document: encoded.document,
        })
    }
}

/// Bytes that `words` take on the command line.
fn length<S: AsRef<OsStr>>(words: &[S]) -> usize {
    words.iter().map(|word| word.as_ref().len() + 1).sum()
}
