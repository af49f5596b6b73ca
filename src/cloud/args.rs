//! The command line of what is about clouds.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::OutputLimits;
use crate::units::Size;

/// Options of machines of EC2.
#[derive(Debug, Args)]
#[command(next_help_heading = "EC2 (docs/ec2.md)")]
pub(crate) struct Ec2Args {
    /// The bucket that the job and its launcher meet in
    #[arg(long, value_name = "NAME")]
    pub(crate) ec2_bucket: Option<String>,
    /// The type of machine (default: the first that has the memory and the vCPUs)
    #[arg(long, value_name = "TYPE")]
    pub(crate) ec2_type: Option<String>,
    /// The subnet (default: the account's)
    #[arg(long, value_name = "ID")]
    pub(crate) ec2_subnet: Option<String>,
    /// A security group; repeatable (default: the network's)
    #[arg(long, value_name = "ID")]
    pub(crate) ec2_group: Vec<String>,
    /// Let whoever has this key log in (default: nobody)
    #[arg(long, value_name = "NAME")]
    pub(crate) ec2_key: Option<String>,
    /// A larger disk than the image's, in whole GiB; its root filesystem grows at boot
    #[arg(long, value_name = "SIZE")]
    pub(crate) ec2_disk: Option<Size>,
    /// A machine for less money, which the cloud may take back
    #[arg(long)]
    pub(crate) ec2_spot: bool,
    /// Print the job's id and leave it alone: see 'apppot cloud'
    #[arg(long)]
    pub(crate) detach: bool,
}

/// `apppot cloud`.
#[derive(Debug, Subcommand)]
pub(crate) enum CloudCommand {
    /// List the jobs that run, or have ended and were not fetched
    Ls(Bucket),
    /// End the machines that are past their deadline; or jobs, and delete what is stored of them
    Reap {
        /// Jobs to end, whatever their deadline
        jobs: Vec<String>,
        #[command(flatten)]
        bucket: Bucket,
    },
    /// Wait for a job to end; the exit status is its own
    Wait(Which),
    /// Print what a job has written so far, to standard output and standard error
    Logs {
        #[command(flatten)]
        which: Which,
        /// Go on until the job has ended
        #[arg(short, long)]
        follow: bool,
    },
    /// Put the results of a job that has ended into the current directory, and delete what is stored of it
    Fetch {
        #[command(flatten)]
        which: Which,
        /// Another directory
        #[arg(short, long, value_name = "DIR")]
        workdir: Option<PathBuf>,
        #[command(flatten)]
        limits: OutputLimits,
        /// Leave what is stored
        #[arg(long)]
        keep: bool,
    },
}

/// A job.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The job's id
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) bucket: Bucket,
}

/// Where jobs are stored.
#[derive(Debug, Clone, Args)]
pub(crate) struct Bucket {
    /// The bucket (default: the configured one, else the one that the job's machine names)
    #[arg(long = "ec2-bucket", value_name = "NAME")]
    pub(crate) name: Option<String>,
}
