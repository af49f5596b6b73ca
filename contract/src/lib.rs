//! What an AppPot host and guest say to each other.
//!
//! These things cross the boundary, each in a module of its own:
//!
//! * [`Contract`]: what the launcher tells the guest at boot. One grammar of `apppot.key=value`
//!   tokens ([`token`]), written as kernel command line words ([`cmdline`]) or as a
//!   [`document`] of one token a line.
//! * [`link`]: the frames of the byte stream between launcher and agent while the machine lives.
//! * [`Report`]: how the job ended, as the agent saw it.
//! * [`store`]: the objects that take the link's place in clouds.
//!
//! Both sides compile this one crate; it depends on nothing of ours. The reference for those who
//! write another agent is `docs/contract.md`.

#![forbid(unsafe_code)]

pub mod cmdline;
mod contract;
pub mod document;
pub mod link;
pub mod percent;
mod report;
pub mod store;
pub mod token;

pub use contract::{
    Boot, Changes, Channel, Contract, Files, Mount, Network, Root, Stdin, Terminal, User, Workload,
    Writes, CHANNELS, VERSION,
};
pub use report::{Outcome, Report, Usage};
pub use store::{Pointer, Store, Url};
pub use token::{Error, Token};
