//! The AppPot guest agent: PID 1 of an appliance, or a service in one.
//!
//! The launcher puts it into an initramfs with the kernel. It finds the contract, mounts the root
//! and the host's directories, becomes the user's account, runs the command, reports and powers
//! off (paper, section 5, steps a to f). [`boot`] is the story; the other modules are its steps.

mod accounts;
mod boot;
mod changes;
mod channels;
mod clock;
mod defaults;
mod devices;
mod failure;
mod hostname;
mod job;
mod link;
mod modules;
mod mounts;
mod network;
mod process;
mod shutdown;
mod snap;
mod sources;
mod stdin;
mod sudo;
mod system;
mod workload;

fn main() -> std::process::ExitCode {
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
    std::process::ExitCode::from(2)
}
