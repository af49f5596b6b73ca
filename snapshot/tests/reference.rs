//! `docs/snapshots.md` and the code say the same.

use apppot_snapshot::rules::{DEFAULTS, OWN};

const PAGE: &str = include_str!("../../docs/snapshots.md");

#[test]
fn every_exclusion_is_on_the_page() {
    for (reason, patterns) in DEFAULTS {
        let cells: Vec<String> = patterns.iter().map(|text| format!("`{text}`")).collect();
        let row = format!("| {reason} | {} |", cells.join(" "));
        assert!(PAGE.contains(&row), "{row}");
    }
    for own in OWN {
        assert!(PAGE.contains(&format!("`/{own}`")), "{own}");
    }
}
