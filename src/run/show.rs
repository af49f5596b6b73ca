//! What is told of a machine: before (`--dry-run`), at its start (`-v`), at its end.

use std::time::Duration;

use anyhow::Result;
use apppot_backends::spec::MachineSpec;
use apppot_backends::{Hypervisor, Machine};

use crate::cli::{General, MachineArgs};
use crate::failure::{print_out, say};
use crate::outcome;
use crate::session::Ended;
use crate::units::Size;

pub(super) fn dry_run(
    backend: &dyn Hypervisor,
    spec: &MachineSpec,
    general: &General,
) -> Result<u8> {
    let rendered = backend.render(spec)?;
    if general.json {
        print_out(&format!("{}\n", serde_json::to_string_pretty(&rendered)?));
        return Ok(0);
    }
    print_out(&format!("backend: {}\n", rendered.backend));
    for (name, value) in &rendered.environment {
        print_out(&format!("environment: {name}={value}\n"));
    }
    for (number, what) in &rendered.descriptors {
        print_out(&format!("descriptor {number}: {what}\n"));
    }
    match &rendered.containment {
        Some(rules) => rules
            .iter()
            .for_each(|rule| print_out(&format!("may {rule}\n"))),
        None => print_out("not confined\n"),
    }
    if let Some(document) = &rendered.document {
        print_out(&format!("contract, by the link:\n{document}"));
    }
    for helper in &rendered.helpers {
        print_out(&format!("helper: {}\n", helper.join(" ")));
    }
    if let Some(domain) = &rendered.domain {
        print_out(&format!("domain:\n{domain}"));
        return Ok(0);
    }
    print_out("command:\n");
    rendered
        .argv
        .iter()
        .for_each(|arg| print_out(&format!("  {arg}\n")));
    Ok(0)
}

/// `-v`: what was chosen.
pub(super) fn describe(machine: &dyn Machine, spec: &MachineSpec, channel: &str) {
    let facts = machine.facts();
    say(&format!("machine {}: {}", spec.contract.id, facts.backend));
    say(&format!(
        "  image:       {} ({})",
        spec.image.path.display(),
        spec.image.kind
    ));
    // An image that starts its own kernel does not say which before it has booted.
    let release = match facts.release.as_str() {
        "" => String::new(),
        release => format!(" ({release})"),
    };
    say(&format!("  kernel:      {}{release}", facts.kernel));
    if let Some(accelerator) = &facts.accelerator {
        say(&format!("  accelerator: {accelerator}"));
    }
    say(&format!(
        "  memory:      {} in {}",
        Size(spec.memory),
        facts.memory_backing
    ));
    let pinned = facts
        .pinned_to
        .map(|cpu| format!(", bound to host CPU {cpu}"));
    say(&format!(
        "  cpus:        {}{}",
        spec.cpus,
        pinned.unwrap_or_default()
    ));
    say(&format!("  channel:     {channel}"));
    say(&format!("  containment: {}", facts.containment));
}

/// Reports how it ended.
pub(crate) fn conclude(
    args: &MachineArgs,
    general: &General,
    id: &str,
    facts: &impl serde::Serialize,
    ended: &Ended,
) -> Result<u8> {
    let ending = &ended.ending;
    if general.verbose > 0 {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let boot = ended
            .boot
            .map(|boot| format!("{:.0} ms to the agent, ", millis(boot)));
        say(&format!(
            "  time:        {}{:.0} ms in all",
            boot.unwrap_or_default(),
            millis(ended.total)
        ));
    }
    if let Some(error) = ending.error() {
        crate::failure::print(&error, general.json);
    }
    if general.json || args.report.is_some() {
        let report = outcome::report(id, facts, ending, ended.boot, ended.total);
        if general.json {
            say(&format!("{report}"));
        }
        if let Some(path) = &args.report {
            outcome::write_report(path, &report)?;
        }
    }
    Ok(ending.exit_status())
}
