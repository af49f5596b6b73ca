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
        contract.user = Some(User {
            name: account.to_owned(),
            // The agent knows the account's numbers, and gives it the caller's.
            uid: 0,
            group: account.to_owned(),
            gid: 0,
            groups: Vec::new(),
            account: Some(account.to_owned()),
        });
    }
    if contract == Contract::default() {
        return Ok(None);
    }
    contract
        .check()
        .context("the image's configuration names what cannot run")?;
    Ok(Some(document::encode(&contract)))
}
