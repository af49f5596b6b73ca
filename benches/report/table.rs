//! Tables for terminals.

use std::fmt::Write;

use crate::sheet::{Better, Sheet};
use crate::stats::digits;

/// A sheet as text.
pub(crate) fn sheet(sheet: &Sheet) -> String {
    let mut text = format!("\n{}\n", sheet.title.replace('`', ""));
    let rows: Vec<&Vec<String>> = std::iter::once(&sheet.head).chain(&sheet.rows).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..sheet.head.len()).map(width).collect();
    for row in rows {
        text.push_str("  ");
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing into a String cannot fail.
            let _ = match index {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    for missing in &sheet.missing {
        let _ = writeln!(text, "  missing: {missing}");
    }
    text
}

/// The goals, each reached or missed.
pub(crate) fn goals(sheets: &[Sheet]) -> String {
    let mut text = String::from("\nGoals\n");
    for (title, goal, verdict) in goal_rows(sheets) {
        let _ = writeln!(text, "  {verdict:<7}  {}: {goal}", title.replace('`', ""));
    }
    text
}

/// Every figure with a goal: title, value and goal, verdict.
pub(crate) fn goal_rows(sheets: &[Sheet]) -> Vec<(String, String, &'static str)> {
    let figures = sheets.iter().flat_map(|sheet| &sheet.figures);
    figures
        .filter_map(|figure| {
            let (goal, reached) = (figure.goal?, figure.reached()?);
            let relation = match figure.better {
                Better::Less => "at most",
                Better::More => "at least",
            };
            let unit = match figure.unit {
                "" => String::new(),
                unit => format!(" {unit}"),
            };
            let value = digits(figure.value.median);
            let text = format!("{value}{unit} ({relation} {goal}{unit})");
            let verdict = if reached { "reached" } else { "MISSED" };
            Some((figure.title.clone(), text, verdict))
        })
        .collect()
}
