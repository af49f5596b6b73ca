//! End to end: the built binary, on real machines, as an ordinary user.
//!
//! Run by `make test`, once a kernel. `cargo test --test e2e` works, too; what it goes by:
//!
//! | variable | meaning | when unset |
//! |---|---|---|
//! | `APPPOT_TEST_BACKEND` | what runs the machines, as `--backend` takes it: `ec2` is a cloud of our own (`support/cloud.rs`), for the tests that `setup/test.sh` names | `uml` |
//! | `APPPOT_TEST_KERNEL` | the kernel; machines of `ec2` have their own | the one that `apppot` finds |
//! | `APPPOT_TEST_IMAGE` | the image that `images/build.sh` builds | tests that need it are skipped |
//! | `APPPOT_TEST_FORTRAN`, `APPPOT_TEST_PYTHON` | the images of the recipes fortran and python-plot | likewise |
//! | `APPPOT_TEST_ROOT`, `APPPOT_TEST_ROOT_SYSV` | what `images/bootable.sh` builds, with each init | likewise |
//! | `APPPOT_TEST_USER` | who runs the machines, when this is run by root | `apppot-test` |
//! | `APPPOT_TEST_CHANNEL` | the channel for the job's files; `ec2` has one only | `auto` |
//! | `APPPOT_TEST_VIRTIOFSD` | the virtiofsd with which the channel virtiofs is tested, too | it is not |
//! | `APPPOT_TEST_MOTO` | the programs of the cloud that `setup/moto.sh` installs | likewise |
//! | `CI` | nothing may be skipped | |

// All of this is tests, which clippy knows of functions marked as such only.
#![allow(clippy::unwrap_used)]

mod support;

mod arguments;
mod binds;
mod build;
mod channels;
mod concurrency;
mod config;
mod containment;
mod courier;
mod doctor;
mod ec2;
mod ending;
mod environment;
mod files;
mod image_results;
mod images;
mod import;
mod jobdir;
mod layout_disk;
mod libvirt;
mod libvirt_daemons;
mod network;
mod options;
mod publish;
mod qemu;
mod refusals;
mod registry;
mod signatures;
mod snap;
mod snap_large;
mod snap_misuse;
mod status;
mod streams;
mod system;
mod terminal;
mod users;
mod workload;
mod writes;
