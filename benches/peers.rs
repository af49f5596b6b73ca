//! Other ways to run a command in another root, as their users use them: without privileges
//! (but chroot), in a directory that is ready.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};

use crate::lab::{is_installed, Lab};
use crate::process::Run;
use crate::rounds::Candidate;
use crate::uml::Timed;

/// What Apptainer is called.
pub(crate) const APPTAINER: &str = "Apptainer";

/// How a peer runs a command in `root`, or why it cannot be measured.
type Recipe = fn(&Lab, root: &Path) -> Result<Run>;

const RECIPES: [(&str, Recipe); 6] = [
    ("chroot (root)", chroot),
    ("bubblewrap", bubblewrap),
    ("Charliecloud", charliecloud),
    ("runc", runc),
    ("Podman", podman),
    (APPTAINER, apptainer),
];

/// Every peer that is here, running `true`; and the others, each with the reason.
pub(crate) fn all(lab: &Lab) -> (Vec<Box<dyn Candidate>>, Vec<String>) {
    let (mut here, mut missing) = (Vec::new(), Vec::new());
    for (name, recipe) in RECIPES {
        let run = lab
            .root
            .as_deref()
            .context("there is no root directory to run it in")
            .and_then(|root| recipe(lab, root));
        match run {
            Ok(run) => here.push(Timed::boxed(name, run)),
            Err(reason) => missing.push(format!("{name}: {reason:#}")),
        }
    }
    (here, missing)
}

fn need(program: &str) -> Result<()> {
    ensure!(is_installed(program), "not installed");
    Ok(())
}

fn chroot(lab: &Lab, root: &Path) -> Result<Run> {
    ensure!(nix::unistd::geteuid().is_root(), "only for root");
    let mut run = lab.command(["chroot".as_ref(), root.as_os_str(), "true".as_ref()]);
    run.account = None;
    Ok(run)
}

fn bubblewrap(lab: &Lab, root: &Path) -> Result<Run> {
    need("bwrap")?;
    Ok(lab
        .command(["bwrap", "--bind"])
        .args([root])
        .args(["/", "--dev", "/dev", "--proc", "/proc", "true"]))
}

fn charliecloud(lab: &Lab, root: &Path) -> Result<Run> {
    need("ch-run")?;
    Ok(lab.command(["ch-run"]).args([root]).args(["--", "true"]))
}

/// A bundle as `runc spec --rootless` makes it, with our root and `true`.
fn runc(lab: &Lab, root: &Path) -> Result<Run> {
    need("runc")?;
    let bundle = lab.work.join("home/bundle");
    let prepare = lab.command(["mkdir", "-p"]).args([&bundle]);
    prepare.succeed()?;
    let spec = lab.command(["runc", "spec", "--rootless"]).within(&bundle);
    spec.succeed().context("runc spec")?;
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["args"] = serde_json::json!(["true"]);
    config["process"]["terminal"] = serde_json::json!(false);
    config["root"]["path"] = serde_json::json!(root);
    std::fs::write(&path, config.to_string())?;
    let state = lab.work.join("runtime/runc");
    Ok(lab
        .command(["runc", "--root"])
        .args([&state])
        .args(["run", "bench"])
        .within(&bundle))
}

/// With the runtime that works here: crun wants version 2 of the host's cgroups.
fn podman(lab: &Lab, root: &Path) -> Result<Run> {
    need("podman")?;
    let common = ["--log-level=error", "--cgroup-manager=cgroupfs"];
    let variants: [(&str, &[&str]); 2] = [("crun", &["--cgroups=disabled"]), ("runc", &[])];
    let mut reasons = Vec::new();
    for (runtime, options) in variants {
        let run = lab
            .command(["podman", "--runtime", runtime])
            .args(common)
            .args(["run", "--rm", "--network=none"])
            .args(options)
            .args(["--rootfs"])
            .args([root])
            .args(["true"]);
        match run.succeed() {
            Ok(_) => return Ok(run),
            Err(reason) => reasons.push(format!("with {runtime}: {reason:#}")),
        }
    }
    bail!("{}", reasons.join("; "))
}

/// Ends what rootless Podman leaves running.
pub(crate) fn clean_up(lab: &Lab) {
    if is_installed("podman") {
        let _ = lab.command(["podman", "system", "migrate"]).finish();
    }
}

fn apptainer(lab: &Lab, root: &Path) -> Result<Run> {
    let mut run = lab
        .command(["apptainer", "exec"])
        .args([root])
        .args(["true"]);
    if lab.apptainer.is_none() {
        ensure!(
            is_installed("apptainer"),
            "not in this machine's package sources, and benches/apptainer.sh could not provide it"
        );
    }
    run.namespace.clone_from(&lab.apptainer);
    Ok(run)
}

/// The versions of what is measured, where it says.
pub(crate) fn versions(lab: &Lab) -> Vec<(String, String)> {
    let mut list = Vec::new();
    for program in ["bwrap", "ch-run", "runc", "crun", "podman", "apptainer"] {
        let mut run = lab.command([program, "--version"]);
        if program == "apptainer" {
            run.namespace.clone_from(&lab.apptainer);
        }
        if let Ok(ended) = run.succeed() {
            // Charliecloud says it on standard error.
            let text = [ended.stdout, ended.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text.lines().next().unwrap_or_default();
            let number = line.split_whitespace().find(|word| starts_with_digit(word));
            list.push((program.to_owned(), number.unwrap_or(line).to_owned()));
        }
    }
    list
}

fn starts_with_digit(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
}
