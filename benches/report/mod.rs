//! From sheets to a table on the terminal, `docs/bench/` and the history.

pub(crate) mod chart;
pub(crate) mod history;
pub(crate) mod markdown;
pub(crate) mod table;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::host::Host;
use crate::sheet::Sheet;

/// Writes `README.md`, `bench.svg`, `latest.json` and a line of `history.jsonl` into `directory`;
/// returns what has become worse since the last run.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(directory: &Path, host: &Host, sheets: &[Sheet]) -> Result<Vec<String>> {
    std::fs::create_dir_all(directory)?;
    let worse = history::append(&directory.join("history.jsonl"), host, sheets)?;
    let latest = json!({
        "machine": host.to_json(),
        "sheets": sheets.iter().map(Sheet::to_json).collect::<Vec<_>>(),
    });
    for (name, text) in [
        ("README.md", markdown::page(host, sheets, &worse)),
        ("bench.svg", chart::svg(host, sheets)),
        ("latest.json", format!("{latest:#}\n")),
    ] {
        let path = directory.join(name);
        std::fs::write(&path, text)
            .with_context(|| format!("cannot write '{}'", path.display()))?;
    }
    Ok(worse)
}
