//! One line a run, and what has become worse since the last one on such a machine.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{json, Map, Value};

use crate::host::Host;
use crate::sheet::{Better, Figure, Sheet};
use crate::stats::digits;

/// What is worse by less, or by less than the spread of the samples, is noise.
const TOLERANCE: f64 = 0.1;

/// Adds this run to the file and compares it with the last comparable one there.
///
/// # Errors
/// The file cannot be read or written.
pub(crate) fn append(path: &Path, host: &Host, sheets: &[Sheet]) -> Result<Vec<String>> {
    let failed = || format!("cannot keep the history in '{}'", path.display());
    let past = match path.exists() {
        true => std::fs::read_to_string(path).with_context(failed)?,
        false => String::new(),
    };
    let figures: Vec<&Figure> = sheets.iter().flat_map(|sheet| &sheet.figures).collect();
    let worse = last(&past, host).map_or_else(Vec::new, |last| worse(&last, &figures));
    let values: Map<String, Value> = figures
        .iter()
        .map(|figure| (figure.key.clone(), json!(rounded(figure.value.median))))
        .collect();
    let line = json!({ "machine": host.to_json(), "figures": values });
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(path)
        .with_context(failed)?;
    writeln!(file, "{line}").with_context(failed)?;
    Ok(worse)
}

/// The newest line of a machine like this one, quiet and measured as thoroughly.
fn last(past: &str, host: &Host) -> Option<Value> {
    let comparable = |line: &Value| {
        let machine = &line["machine"];
        machine["cpu"] == json!(host.cpu)
            && machine["cpus"] == json!(host.cpus)
            && machine["quick"] == json!(host.quick)
            && machine["quiet"] == json!(true)
    };
    past.lines()
        .rev()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(comparable)
}

/// Ratios that have become worse. (Times have too many other reasons.)
fn worse(last: &Value, figures: &[&Figure]) -> Vec<String> {
    let ratios = figures.iter().filter(|figure| figure.is_ratio());
    let worsened = ratios.filter_map(|figure| {
        let (now, before) = (figure.value.median, last["figures"][&figure.key].as_f64()?);
        let change = match figure.better {
            Better::Less => now / before - 1.0,
            Better::More => before / now - 1.0,
        };
        (change > TOLERANCE.max(figure.value.spread())).then(|| {
            let date = last["machine"]["date"].as_str().unwrap_or("?");
            format!(
                "{}: {} × now, {} × on {date}",
                figure.title,
                digits(now),
                digits(before)
            )
        })
    });
    worsened.collect()
}

fn rounded(value: f64) -> f64 {
    digits(value).parse().unwrap_or(value)
}
