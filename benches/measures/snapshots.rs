//! Snapshots: recording, finding what changed, merging at boot, and how that grows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Measure;
use crate::lab::Lab;
use crate::process::Run;
use crate::rounds::{Candidate, Plan, Race, WALL};
use crate::sheet::{cell, short, Better, Sheet};
use crate::stats::Summary;
use crate::uml::Timed;

/// Copies of the Debian's files: some 1 GiB.
const COPIES: usize = 7;
/// Copies in the small image, with which growth is measured.
const FEW: usize = 2;

const BASE: &str = "apppot snap base";
const BASE_FEW: &str = "apppot snap base, the small image";
const FIND: &str = "find -printf, sha256sum";
const TAR: &str = "tar --listed-incremental";
const CHANGES: &str = "apppot snap changes, one new file of 10 MB";
const WITHOUT: &str = "apppot run -- true";
const MERGED: &str = "apppot run --changes -- true, 10 MB";

const ABOUT: &str = "An ext4 image that holds the Debian's files seven times, read from the page cache by an \
ordinary user. find, sha256sum and tar read the same files from a directory. The new file is of random bytes, \
in a copy-on-write file above the image.";

/// See the module.
pub(super) struct Snapshots;

impl Measure for Snapshots {
    fn name(&self) -> &'static str {
        "snapshots"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let scene = Scene::make(lab)?;
        let plan = Plan {
            warm_up: 1,
            rounds: lab.rounds(5).min(5),
            patience: Duration::from_secs(1),
        };
        let reading = Race::run(scene.readers(), plan);
        let boots = Race::run(scene.boots(), Plan::rounds(lab.rounds(10)));
        let head = ["", "ms: median (quartiles)", "÷ apppot snap base"];
        let mut sheet = Sheet::new("snapshots", "Snapshots", ABOUT, &head);
        for lane in &reading.lanes {
            let ratio = reading.ratio(&lane.name, BASE, WALL);
            sheet.row([
                lane.name.clone(),
                cell(lane.summary(WALL)),
                short(ratio, " ×"),
            ]);
        }
        for lane in &boots.lanes {
            sheet.row([lane.name.clone(), cell(lane.summary(WALL)), String::new()]);
        }
        figures(&mut sheet, &scene, &reading, &boots);
        sheet.keep("read", reading);
        sheet.keep("boot", boots);
        Ok(sheet)
    }
}

fn figures(sheet: &mut Sheet, scene: &Scene, reading: &Race, boots: &Race) {
    let (more, less) = (("×", Better::More), ("×", Better::Less));
    let names = (
        "find/base",
        "`find -printf` and `sha256sum` ÷ recording a base",
    );
    sheet.figure(names, reading.ratio(FIND, BASE, WALL), more, Some(3.0));
    let names = ("tar/base", "`tar --listed-incremental` ÷ recording a base");
    sheet.figure(names, reading.ratio(TAR, BASE, WALL), more, Some(1.0));
    let names = ("changes-ms", "changes of one file of 10 MB in 1 GiB");
    let changes = reading.summary(CHANGES, WALL);
    sheet.figure(names, changes, ("ms", Better::Less), Some(1000.0));
    let names = (
        "growth",
        "time a file in the large image ÷ in the small one",
    );
    let growth = reading.ratio(BASE, BASE_FEW, WALL);
    let growth = growth.map(|it| it.scaled(scene.few as f64 / scene.many as f64));
    sheet.figure(names, growth, less, Some(1.3));
    let names = ("merge-ms", "what merging 10 MB adds to a run");
    let added = difference(boots, MERGED, WITHOUT);
    sheet.figure(names, added, ("ms", Better::Less), Some(150.0));
}

/// What `name` takes longer than `base`, round by round.
fn difference(race: &Race, name: &str, base: &str) -> Option<Summary> {
    let readings = |name| race.lane(name)?.readings.get(WALL);
    let pairs = readings(name)?.iter().zip(readings(base)?);
    Summary::of(pairs.filter_map(|(with, without)| Some((*with)? - (*without)?)))
}

/// The images, and what is made of them.
struct Scene<'a> {
    lab: &'a Lab,
    directory: PathBuf,
    /// Files in the large image.
    many: usize,
    /// Files in the small one.
    few: usize,
}

impl<'a> Scene<'a> {
    fn make(lab: &'a Lab) -> Result<Self> {
        let root = lab.root.as_ref().context("there is no Debian to copy")?;
        let directory = lab.jobdir.join("snapshots");
        let mut scene = Scene {
            lab,
            directory,
            many: 0,
            few: 0,
        };
        scene.copies(root)?;
        let write = [
            "--root",
            "--image",
            "many.img",
            "--overlay",
            "many.cow",
            "--",
        ];
        let write = scene.run(&write).args(["sh", "-c", NEW_FILE]);
        write.succeed().context("writing the new file")?;
        let record = ["base", "many.img", "-o", "many.base"];
        scene.snap(&record).succeed().context("recording")?;
        scene.changes().succeed().context("finding the new file")?;
        Ok(scene)
    }

    /// Makes the directories that find and tar read, and the images of them.
    fn copies(&mut self, root: &Path) -> Result<()> {
        let make = self.lab.command(["mkdir"]).args([&self.directory]);
        make.succeed()?;
        let script = self.command(["sh", "-euc", COPY, "sh"]).args([root]);
        let script = script.args([FEW.to_string(), COPIES.to_string()]);
        let counted = script.succeed().context("copying the Debian's files")?;
        let counts = counted.text();
        let mut counts = counts.lines().filter_map(|line| line.trim().parse().ok());
        let mut next = || counts.next().context("the copies cannot be counted");
        (self.few, self.many) = (next()?, next()?);
        Ok(())
    }

    fn command<'s>(&self, argv: impl IntoIterator<Item = &'s str>) -> Run {
        self.lab.command(argv).within(&self.directory)
    }

    fn snap(&self, args: &[&str]) -> Run {
        let run = self.lab.command([&self.lab.apppot]);
        run.args(["snap", "--quiet"])
            .args(args)
            .within(&self.directory)
    }

    fn changes(&self) -> Run {
        let words = [
            "changes",
            "--base",
            "many.base",
            "many.img",
            "--overlay",
            "many.cow",
        ];
        self.snap(&words)
    }

    fn run(&self, args: &[&str]) -> Run {
        let run = self.lab.apppot_run(self.lab.first_kernel());
        run.args(args).within(&self.directory)
    }

    fn readers(&self) -> Vec<Box<dyn Candidate>> {
        vec![
            Timed::boxed(BASE, self.snap(&["base", "many.img", "-o", "again.base"])),
            Timed::boxed(BASE_FEW, self.snap(&["base", "few.img", "-o", "few.base"])),
            Timed::boxed(FIND, self.command(["sh", "-euc", FIND_ALL])),
            Timed::boxed(TAR, self.command(["sh", "-euc", TAR_ALL])),
            Timed::boxed(CHANGES, self.changes()),
        ]
    }

    fn boots(&self) -> Vec<Box<dyn Candidate>> {
        let without = ["--image", "many.img"];
        let with = ["--image", "many.img", "--changes", "apppot.changes"];
        let job = ["--", "true"];
        vec![
            Timed::boxed(WITHOUT, self.run(&without).args(job)),
            Timed::boxed(MERGED, self.run(&with).args(job)),
        ]
    }
}

/// The Debian with copies of itself in it: `$2` and `$3` times in all.
const COPY: &str = "for name in few many; do
    [ $name = few ] && count=$2 || count=$3
    cp -a \"$1\" $name; mkdir $name/copies
    n=1; while [ $n -lt $count ]; do n=$((n+1)); cp -a \"$1\" $name/copies/$n; done
    mke2fs -q -t ext4 -d $name $name.img $((count * 220))M
    find $name | wc -l
done; rm -r few";
const NEW_FILE: &str = "head -c 10000000 /dev/urandom >/new";
const FIND_ALL: &str = "find many -printf '%p %y %m %U %G %s %T@ %l\\n' >listing
    find many -type f -print0 | xargs -0 sha256sum >sums";
/// To a pipe: tar does not read files that go to /dev/null.
const TAR_ALL: &str =
    "rm -f record; tar --create --listed-incremental=record many | cat >/dev/null";
