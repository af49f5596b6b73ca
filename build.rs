//! Builds the guest agent and the courier, which the `apppot` binary carries: one file is all that a batch node
//! needs, and the agent always matches the launcher.
//!
//! They are static executables whatever the launcher is, so they are built by a cargo of their own.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    for input in [
        "guest-agent",
        "courier/src",
        "courier/Cargo.toml",
        "contract/src",
        "snapshot/src",
        "snapshot/Cargo.toml",
        "contract/Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={input}");
    }
    let agent = build("apppot-init");
    println!("cargo::rustc-env=APPPOT_AGENT={}", agent.display());
    let courier = build("apppot-courier");
    println!("cargo::rustc-env=APPPOT_COURIER={}", courier.display());
}

/// Builds a package of one static executable, by itself: what another one asks of a library stays out of it.
fn build(package: &str) -> PathBuf {
    let variable = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_default());
    let target = env::var("TARGET").unwrap_or_default();
    let directory = variable("OUT_DIR").join("agent");
    let status = Command::new(variable("CARGO"))
        .args(["build", "--quiet", "--package", package])
        .args(["--profile", "agent", "--target", &target])
        .arg("--target-dir")
        .arg(&directory)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // A linter that wraps the compiler has nothing to do here.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{package} could not be built"
    );
    directory.join(target).join("agent").join(package)
}
