//! Growth with the guest's memory.

use anyhow::Result;

use super::start::HOST;
use super::Measure;
use crate::lab::Lab;
use crate::rounds::{Plan, Race, WALL};
use crate::sheet::{cell, short, Better, Sheet};
use crate::uml::{apppot_name, floor_name, Floor, Timed};

const SIZES_MIB: [u32; 4] = [256, 1024, 4096, 8192];

/// See the module.
pub(super) struct Memory;

impl Measure for Memory {
    fn name(&self) -> &'static str {
        "growth with memory"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let kernel = lab.first_kernel();
        let (apppot, floor) = (apppot_name(kernel, HOST), floor_name(kernel));
        let about = format!(
            "Start to finish of `true` in the host appliance, {}, and the floor with the same memory.",
            kernel.name
        );
        let head = ["guest memory", "AppPot, ms", "floor, ms", "ratio"];
        let mut sheet = Sheet::new("memory", "Growth with the guest's memory", &about, &head);
        for mib in SIZES_MIB {
            let size = format!("{mib}M");
            let run = lab.apppot_run(kernel);
            let run = run.args(["--memory", &size, "--", "true"]);
            let candidates = vec![Timed::boxed(&*apppot, run), Floor::boxed(lab, kernel, mib)];
            let race = Race::run(candidates, Plan::rounds(lab.rounds(10)));
            let ratio = race.ratio(&apppot, &floor, WALL);
            sheet.row([
                format!("{mib} MiB"),
                cell(race.summary(&apppot, WALL)),
                cell(race.summary(&floor, WALL)),
                short(ratio, " ×"),
            ]);
            let names = (
                &*format!("{size}/floor"),
                &*format!("`true` with {mib} MiB ÷ the floor"),
            );
            sheet.figure(names, ratio, ("×", Better::Less), None);
            sheet.keep(size, race);
        }
        Ok(sheet)
    }
}
