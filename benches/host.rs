//! The machine that everything was measured on.

use std::fs;
use std::process::Command;

use serde_json::{json, Value};

use crate::lab::Lab;
use crate::peers;

/// One runnable process in ten minutes' peace is a busy machine: its numbers are noise.
const BUSY: f64 = 0.3;

/// What a reader must know to judge the numbers.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Processor.
    pub(crate) cpu: String,
    /// Processors.
    pub(crate) cpus: usize,
    /// Memory, GiB.
    pub(crate) memory_gib: f64,
    /// Distribution and kernel.
    pub(crate) system: String,
    /// When, UTC.
    pub(crate) date: String,
    /// The commit that was measured.
    pub(crate) commit: String,
    /// Versions by name.
    pub(crate) versions: Vec<(String, String)>,
    /// Load average over a minute before the first measure.
    pub(crate) load_before: f64,
    /// And after the last.
    pub(crate) load_after: f64,
    /// Whether rounds were few.
    pub(crate) quick: bool,
}

impl Host {
    /// This one, now.
    pub(crate) fn now(lab: &Lab) -> Self {
        let mut versions = vec![(
            String::from("AppPot"),
            output(&[&lab.apppot.to_string_lossy(), "--version"]),
        )];
        for kernel in &lab.kernels {
            versions.push((kernel.name.to_owned(), kernel.release.clone()));
        }
        versions.extend(peers::versions(lab));
        Host {
            cpu: field("/proc/cpuinfo", "model name"),
            cpus: lab.cpus,
            memory_gib: kibibytes(&field("/proc/meminfo", "MemTotal")) / 1048576.0,
            system: format!("{}, Linux {}", distribution(), output(&["uname", "-r"])),
            date: output(&["date", "-u", "+%Y-%m-%d %H:%M"]),
            commit: std::env::var("APPPOT_BENCH_COMMIT").unwrap_or_default(),
            versions,
            load_before: load(),
            load_after: 0.0,
            quick: lab.quick,
        }
    }

    /// Why the numbers should not be trusted, if so.
    pub(crate) fn warning(&self) -> Option<String> {
        (self.load_before > BUSY * self.cpus as f64).then(|| {
            format!(
                "the machine was not quiet: load average {:.2} on {} CPUs before the first measure",
                self.load_before, self.cpus
            )
        })
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        let versions: serde_json::Map<String, Value> = self
            .versions
            .iter()
            .map(|(name, version)| (name.clone(), json!(version)))
            .collect();
        json!({
            "cpu": self.cpu, "cpus": self.cpus, "memory-gib": self.memory_gib.round(),
            "system": self.system, "date": self.date, "commit": self.commit, "versions": versions,
            "load-before": self.load_before, "load-after": self.load_after,
            "quiet": self.warning().is_none(), "quick": self.quick,
        })
    }
}

/// Load average over the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|it| it.parse().ok())
        .unwrap_or(0.0)
}

fn output(argv: &[&str]) -> String {
    let Some((program, args)) = argv.split_first() else {
        return String::new();
    };
    let output = Command::new(program).args(args).output();
    output.map_or(String::new(), |it| {
        String::from_utf8_lossy(&it.stdout).trim().to_owned()
    })
}

/// The value of `name: value` in a file of such lines.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_once(':'));
    value.map_or(String::new(), |(_, value)| value.trim().to_owned())
}

fn kibibytes(text: &str) -> f64 {
    text.split_whitespace()
        .next()
        .and_then(|it| it.parse().ok())
        .unwrap_or(0.0)
}

fn distribution() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("unknown").trim_matches('"').to_owned()
}
