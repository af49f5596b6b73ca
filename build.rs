//! Builds the guest agent, which the `apppot` binary carries: one file is all that a batch node
//! needs, and the agent always matches the launcher.
//!
//! The agent is a static executable whatever the launcher is, so it is built by a cargo of its own.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    for input in [
        "guest-agent",
        "contract/src",
        "snapshot/src",
        "snapshot/Cargo.toml",
        "contract/Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={input}");
    }
    let variable = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_default());
    let target = env::var("TARGET").unwrap_or_default();
    let directory = variable("OUT_DIR").join("agent");
    let status = Command::new(variable("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "apppot-init",
            "--profile",
            "agent",
        ])
        .args(["--target", &target])
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
        "the guest agent could not be built"
    );
    let agent = directory.join(target).join("agent/apppot-init");
    println!("cargo::rustc-env=APPPOT_AGENT={}", agent.display());
}
