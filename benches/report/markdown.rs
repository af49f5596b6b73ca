//! The page in the documentation.

use std::fmt::Write;

use super::table::goal_rows;
use crate::host::Host;
use crate::sheet::Sheet;

/// The whole page.
pub(crate) fn page(host: &Host, sheets: &[Sheet], worse: &[String]) -> String {
    let mut text = String::from(
        "# Benchmark\n\nWritten by `make bench`; not edited by hand. One run measured all of it: the \
         candidates of a table took turns, round by round, so whatever drifted on the machine hit all \
         alike. Numbers are medians, quartiles in parentheses; ratios are medians of the rounds' own \
         ratios.\n\n![chart](bench.svg)\n",
    );
    // Writing into a String cannot fail.
    let _ = writeln!(text, "\n{}", machine(host));
    if let Some(warning) = host.warning() {
        let _ = writeln!(text, "\n**Not to be quoted:** {warning}.");
    }
    let _ = writeln!(text, "\n## Goals\n\n| goal | measured | |\n|---|---|---|");
    for (title, value, verdict) in goal_rows(sheets) {
        let _ = writeln!(text, "| {title} | {value} | {verdict} |");
    }
    for sheet in sheets {
        let _ = writeln!(text, "\n## {}\n\n{}\n", sheet.title, sheet.about);
        text.push_str(&table(sheet));
        if !sheet.missing.is_empty() {
            let _ = writeln!(text, "\nNot measured: {}.", sheet.missing.join("; "));
        }
    }
    if !worse.is_empty() {
        let _ = writeln!(text, "\n## Worse than in the last run\n");
        for line in worse {
            let _ = writeln!(text, "- {line}");
        }
    }
    text
}

fn machine(host: &Host) -> String {
    let versions: Vec<String> = host
        .versions
        .iter()
        .map(|(name, version)| format!("{name} {}", version.trim_start_matches("apppot ")))
        .collect();
    let rounds = if host.quick {
        "; few rounds (`BENCH_QUICK`)"
    } else {
        ""
    };
    let commit = match host.commit.is_empty() {
        true => String::new(),
        false => format!(", commit {}", host.commit),
    };
    format!(
        "{} UTC{commit}; {}, {} CPUs, {:.0} GiB; {}; load average {:.2} before, {:.2} after{rounds}. {}.",
        host.date,
        host.cpu,
        host.cpus,
        host.memory_gib,
        host.system,
        host.load_before,
        host.load_after,
        versions.join(", "),
    )
}

fn table(sheet: &Sheet) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<String> = sheet
        .head
        .iter()
        .enumerate()
        .map(|(index, _)| String::from(if index == 0 { "---" } else { "--:" }))
        .collect();
    let rows = sheet.rows.iter().map(|row| line(row));
    std::iter::once(line(&sheet.head))
        .chain(std::iter::once(line(&rule)))
        .chain(rows)
        .collect()
}
