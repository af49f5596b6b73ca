//! Images: importing a container image, against unpacking it and making a filesystem of that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Measure;
use crate::lab::Lab;
use crate::process::Run;
use crate::rounds::{Candidate, Plan, Race, WALL};
use crate::sheet::{cell, short, Better, Sheet};
use crate::uml::Timed;

const IMPORT: &str = "apppot image import";
const OTHERS: &str = "umoci unpack --rootless, mke2fs -d";

const ABOUT: &str = "An OCI layout of two layers, compressed with gzip, each with the Debian's files: some 200 MB unpacked. \
Both read it from the page cache and write an ext4 image, as an ordinary user. All files of what umoci unpacks belong to that user, \
those of an imported image to whom they should.";

/// See the module.
pub(super) struct Images;

impl Measure for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    fn measure(&self, lab: &Lab) -> Result<Sheet> {
        let scene = Scene::make(lab)?;
        let plan = Plan {
            warm_up: 1,
            rounds: lab.rounds(5).min(5),
            patience: Duration::from_secs(1),
        };
        let race = Race::run(scene.candidates(), plan);
        let head = ["", "ms: median (quartiles)", "÷ apppot image import"];
        let mut sheet = Sheet::new("images", "Images", ABOUT, &head);
        for lane in &race.lanes {
            let ratio = race.ratio(&lane.name, IMPORT, WALL);
            sheet.row([
                lane.name.clone(),
                cell(lane.summary(WALL)),
                short(ratio, " ×"),
            ]);
        }
        let names = (
            "umoci/import",
            "`umoci unpack` and `mke2fs -d` ÷ importing the same image",
        );
        let ratio = race.ratio(OTHERS, IMPORT, WALL);
        sheet.figure(names, ratio, ("×", Better::More), Some(1.0));
        sheet.keep("import", race);
        Ok(sheet)
    }
}

/// The container image.
struct Scene<'a> {
    lab: &'a Lab,
    directory: PathBuf,
}

impl<'a> Scene<'a> {
    fn make(lab: &'a Lab) -> Result<Self> {
        let root = lab.root.as_ref().context("there is no Debian to copy")?;
        let directory = lab.jobdir.join("images");
        lab.command(["mkdir"]).args([&directory]).succeed()?;
        let scene = Scene { lab, directory };
        let make = scene.script(LAYOUT).args([root]);
        make.succeed().context("making the container image")?;
        Ok(scene)
    }

    fn script(&self, text: &str) -> Run {
        let run = self.lab.command(["sh", "-euc", text, "sh"]);
        run.within(&self.directory)
    }

    fn candidates(&self) -> Vec<Box<dyn Candidate>> {
        let apppot: &Path = &self.lab.apppot;
        let words = ["image", "import", "--quiet", "--force", "layout", "new.img"];
        let import = self.lab.command([apppot]).args(words);
        vec![
            Timed::boxed(IMPORT, import.within(&self.directory)),
            Timed::boxed(OTHERS, self.script(UNPACK)),
        ]
    }
}

/// What cannot be read is left out of both layers.
const LAYOUT: &str = "umoci init --layout layout
    umoci new --image layout:latest
    for copy in one two; do
        umoci unpack --rootless --image layout:latest bundle
        cp -a \"$1\" bundle/rootfs/$copy
        umoci repack --image layout:latest bundle
        rm -rf bundle
    done";
/// Into a directory of its own each time: removing it is not part of the work.
const UNPACK: &str = "umoci unpack --rootless --image layout:latest bundle-$$
    mke2fs -q -F -t ext4 -d bundle-$$/rootfs other.img 600M";
