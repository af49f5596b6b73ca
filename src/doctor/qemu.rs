//! What there is for machines that QEMU runs.

use std::path::Path;

use apppot_backends::qemu::kernel::Kernel;
use apppot_backends::qemu::kvm::{self, Accelerator};
use apppot_backends::qemu::program::Program;
use apppot_backends::qemu::ALWAYS;
use apppot_backends::Error;

use super::{Check, State};

/// The checks; the first ones that are bad keep every machine from running.
pub(super) fn checks(kernel: Option<&Path>) -> Vec<Check> {
    vec![program(), guest_kernel(kernel), accelerator()]
}

fn program() -> Check {
    match Program::find() {
        Ok(program) => Check::good(
            "qemu",
            format!("{} ({})", program.path.display(), program.version),
        ),
        Err(error) => unusable("qemu", &error),
    }
}

fn guest_kernel(chosen: Option<&Path>) -> Check {
    match Kernel::find(chosen, &ALWAYS) {
        Ok(kernel) => Check::good(
            "qemu kernel",
            format!("{} ({})", kernel.path.display(), kernel.release),
        ),
        Err(error) => unusable("qemu kernel", &error),
    }
}

fn unusable(name: &'static str, error: &Error) -> Check {
    Check::good(name, error.to_string()).but(
        State::Bad,
        "no appliance can run with QEMU",
        error.hint().unwrap_or_default(),
    )
}

fn accelerator() -> Check {
    match kvm::accelerator() {
        Accelerator::Kvm => Check::good("kvm", "/dev/kvm works"),
        Accelerator::Tcg { reason } => Check::good("kvm", reason).but(
            State::Fair,
            "QEMU executes guests in software, which takes ten times as long and more",
            "use the backend uml, or ask the administrator for /dev/kvm (group kvm)",
        ),
    }
}
