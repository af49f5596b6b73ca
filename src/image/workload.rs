//! A container's process as what an appliance runs by default.

use std::path::PathBuf;

use anyhow::{Context, Result};
use apppot_contract::{document, Contract, User, Workload};
use apppot_image::oci::Process;

/// Where the guest agent reads it.
pub(super) const PATH: &str = "etc/apppot/workload";

/// The document for the guest agent; `None` when the image says nothing.
pub(super) fn document(process: &Process) -> Result<Option<String>> {
    let argv = process.argv();
    let mut contract = Contract {
        workload: match argv.is_empty() {
            true => Workload::Default,
            false => Workload::Command(argv.into_iter().map(Into::into).collect()),
        },
        env: process
            .env()
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        ..Contract::default()
    };
    if process.working_dir.starts_with('/') {
        contract.jobdir = PathBuf::from(&process.working_dir);
    }
    let account = process.user.split(':').next().unwrap_or_default();
    if !matches!(account, "" | "root" | "0") {
        contract.user = Some(user(account));
    }
    if contract == Contract::default() {
        return Ok(None);
    }
    contract
        .check()
        .context("the image's configuration names what cannot run")?;
    Ok(Some(document::encode(&contract)))
}

/// The document of an image whose jobs run under the account `name`.
pub(super) fn of_user(name: &str) -> Result<String> {
    let contract = Contract {
        user: Some(user(name)),
        ..Contract::default()
    };
    contract.check().context("the account cannot run jobs")?;
    Ok(document::encode(&contract))
}

/// An account of the image. The agent knows its numbers, and gives it the caller's.
fn user(account: &str) -> User {
    User {
        name: account.to_owned(),
        uid: 0,
        group: account.to_owned(),
        gid: 0,
        groups: Vec::new(),
        account: Some(account.to_owned()),
    }
}
