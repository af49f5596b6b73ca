//! Start to finish of `true`.

use std::time::Duration;

use anyhow::Result;

use super::Measure;
use crate::lab::{Lab, MEMORY_MIB};
use crate::peers;
use crate::rounds::{Candidate, Plan, Race, CPU, WALL};
use crate::sheet::{cell, short, Better, Sheet};
use crate::uml::{apppot_name, floor_name, Floor, Timed};

/// The default appliance.
pub(crate) const HOST: &str = "host appliance";
/// The Debian image.
pub(crate) const IMAGE: &str = "Debian image";

const ABOUT: &str = "Wall time of the whole process, from fork to wait. The floor is the same kernel \
with the same memory (2 GiB) that boots a trivial static init from a directory, which powers off at \
once. CPU time is that of all processes that were waited for. The others run in a directory that holds the files of the Debian image, as an ordinary user.";

/// See the module.
pub(super) struct Start;

impl Measure for Start {
    fn name(&self) -> &'static str {
        "start to finish of true"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let (peers, missing) = peers::all(lab);
        let mut candidates = machines(lab);
        candidates.extend(peers);
        let plan = Plan {
            warm_up: 2,
            rounds: lab.rounds(30),
            patience: Duration::from_millis(500),
        };
        let race = Race::run(candidates, plan);
        peers::clean_up(lab);
        let mut sheet = Sheet::new(
            "start",
            "Start to finish of `true`",
            ABOUT,
            &[
                "",
                "ms: median (quartiles)",
                "CPU, ms",
                "÷ floor of own kernel",
                "÷ Apptainer",
            ],
        );
        sheet.missing = missing;
        if lab.image.is_none() {
            sheet
                .missing
                .push(format!("AppPot, {IMAGE}: there is none"));
        }
        fill(&mut sheet, lab, &race);
        sheet.keep("true", race);
        Ok(sheet)
    }
}

/// AppPot and the floor, with every kernel.
fn machines(lab: &Lab) -> Vec<Box<dyn Candidate>> {
    let mut candidates = Vec::new();
    for kernel in &lab.kernels {
        let run = lab.apppot_run(kernel).args(["--", "true"]);
        candidates.push(Timed::boxed(apppot_name(kernel, HOST), run));
        if let Some(image) = lab.image.as_ref().filter(|_| kernel.own) {
            let run = lab.apppot_run(kernel).args(["--image"]).args([image]);
            let run = run.args(["--", "true"]);
            candidates.push(Timed::boxed(apppot_name(kernel, IMAGE), run));
        }
        candidates.push(Floor::boxed(lab, kernel, MEMORY_MIB));
    }
    candidates
}

fn fill(sheet: &mut Sheet, lab: &Lab, race: &Race) {
    let first = lab.first_kernel();
    let base = floor_name(first);
    for lane in &race.lanes {
        let Some(wall) = lane.summary(WALL) else {
            continue;
        };
        sheet.row([
            lane.name.clone(),
            cell(Some(wall)),
            short(lane.summary(CPU), ""),
            short(race.ratio(&lane.name, &base, WALL), " ×"),
            short(race.ratio(&lane.name, peers::APPTAINER, WALL), " ×"),
        ]);
        sheet.bars.push((lane.name.clone(), wall));
    }
    sheet.bars.sort_by(|a, b| a.1.median.total_cmp(&b.1.median));
    let ratio = ("×", Better::Less);
    for kernel in &lab.kernels {
        let (apppot, floor) = (apppot_name(kernel, HOST), floor_name(kernel));
        let (tag, goal) = match kernel.own {
            true => ("own", Some(1.3)),
            false => ("debian", None),
        };
        let title = format!("`apppot run -- true` ÷ the floor, {}", kernel.name);
        let names = (&*format!("{tag}/floor"), &*title);
        sheet.figure(names, race.ratio(&apppot, &floor, WALL), ratio, goal);
        let title = format!(
            "CPU time of `apppot run -- true` ÷ the floor's, {}",
            kernel.name
        );
        let names = (&*format!("{tag}/floor-cpu"), &*title);
        sheet.figure(names, race.ratio(&apppot, &floor, CPU), ratio, None);
        let title = format!("`apppot run -- true`, {}", kernel.name);
        let names = (&*format!("{tag}-ms"), &*title);
        sheet.figure(
            names,
            race.summary(&apppot, WALL),
            ("ms", Better::Less),
            None,
        );
    }
    let apppot = apppot_name(first, HOST);
    let to_apptainer = race.ratio(&apppot, peers::APPTAINER, WALL);
    let names = ("own/apptainer", "`apppot run -- true` ÷ `apptainer exec`");
    sheet.figure(names, to_apptainer, ratio, Some(1.0));
}
