//! Jobs on machines of a cloud: `--backend ec2` and `apppot cloud` (`docs/ec2.md`).
//!
//! A machine in a cloud has no stream to its launcher, no file of this host and no kernel of ours, so it is
//! none of the backends' (ADR 16). It and its launcher meet in a bucket:
//!
//! ```text
//! plan ──► pack, upload ──► RunInstances ──► watch: output, report ──► results ──► nothing left
//!                                              └── or leave it alone: `manage`, from anywhere
//! ```

mod args;
mod kinds;
mod launch;
mod list;
mod manage;
mod objects;
mod plan;
mod refuse;
mod show;
mod watch;

use std::path::Path;

use anyhow::{Context, Result};
use apppot_cloud::Config;

pub(crate) use self::args::{CloudCommand, Ec2Args};
pub(crate) use self::launch::run;
pub(crate) use self::manage::command;
pub(crate) use self::refuse::refuse_elsewhere;

/// The name that `--backend` takes.
pub(crate) const BACKEND: &str = "ec2";

/// The tag that makes a machine one of ours: the job's id.
const JOB_TAG: &str = "apppot:job";
/// The tag that says when the machine must have ended, as `apppot_cloud::iso_time` writes it.
const DEADLINE_TAG: &str = "apppot:deadline";
/// The tag that says where the job's objects are.
const BUCKET_TAG: &str = "apppot:bucket";

/// Whether this names an image of a cloud.
pub(crate) fn is_image(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with("ami-"))
}

/// Who we are to the cloud, and where it is.
fn configuration() -> Result<Config> {
    Config::load(&|name: &str| std::env::var(name).ok()).context("cannot use the cloud")
}
