//! The AppPot guest agent: PID 1 of an appliance, or a service in one.
//!
//! The launcher puts it into an initramfs with the kernel. It finds the contract, mounts the root
//! and the host's directories, becomes the user's account, runs the command, reports and powers
//! off (paper, section 5, steps a to f). [`boot`] is the story; the other modules are its steps.

#![cfg_attr(not(test), no_main)]

mod accounts;
mod boot;
mod changes;
mod channels;
mod clock;
mod courier;
mod defaults;
mod devices;
mod failure;
mod files;
mod growth;
mod hostname;
mod interface;
mod job;
mod link;
mod metadata;
mod modules;
mod mounts;
mod network;
mod once;
mod own_root;
mod process;
mod shutdown;
mod snap;
mod sources;
mod stdin;
mod sudo;
mod system;
mod uplink;
mod volumes;
mod watchdog;
mod workload;

/// What C's start-up code calls. Rust's own, before it calls its `main`, looks at the standard
/// streams, at the stack's guard page and sets up a stack for its signal handlers: 15 system calls of
/// 10 µs in every boot under User-Mode Linux. The arguments are there without it (std::env::args_os
/// on Linux with glibc); what is missing is that SIGPIPE is ignored.
#[cfg(not(test))]
// SAFETY: no other symbol has this name; it is called once, before there are threads.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    libc::c_int::from(run())
}

/// The exit status.
#[cfg_attr(test, allow(dead_code))]
fn run() -> u8 {
    let name = std::env::args_os().next().unwrap_or_default();
    if std::path::Path::new(&name).ends_with("apppot-snap") {
        return snap::main();
    }
    if std::process::id() == 1 {
        boot::run()
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == system::SERVICE)
    {
        system::serve()
    }
    eprintln!(
        "apppot-init {}: this program is PID 1 of an AppPot appliance; 'apppot run' starts it",
        env!("CARGO_PKG_VERSION")
    );
    2
}
