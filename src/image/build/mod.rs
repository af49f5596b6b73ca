//! `apppot image build`: an image of a recipe.
//!
//! Packages are fetched and unpacked by mmdebstrap, which needs no privilege for that. Their own scripts and
//! the recipe's commands run in the image itself, on machines that the launcher starts like any other. What
//! comes of it is written once more, without what the build has left.

mod base;
mod finished;
mod recipe;

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use apppot_backends::process::descriptor_path;
use apppot_backends::spec::Network;
use apppot_image::oci::Digest;
use apppot_image::{Archive, Filesystem, Limits, Options};
use apppot_snapshot::entry::Time;
use apppot_snapshot::tree::Ext4;
use serde_json::json;

use self::base::Bootstrap;
use self::finished::Finished;
use self::recipe::Recipe;
use super::args::{BuildArgs, Layout};
use super::make::New;
use super::{workload, ORIGIN};
use crate::cli::General;
use crate::failure::{hinted, say};
use crate::run::{self, Inside};

/// Where the build's own files are in the image that it works on.
const STAGING: &str = ".apppot-build";

/// Room for whatever packages and commands write on the way; holes take none on the host.
const WORKING_SIZE: u64 = 32 << 30;

/// Lines of the transcript that are shown when something has failed.
const LAST_LINES: usize = 20;

/// Builds an image.
pub(super) fn build(args: &BuildArgs, general: &General) -> Result<()> {
    let recipe = Recipe::find(&args.recipe)?;
    if crate::here()?.require_signature.value {
        return Err(hinted(
            "only what is signed may run here, and what is being built is not",
            "build where require-signature is not set, and sign the image",
        ));
    }
    check(&recipe, args)?;
    let word = args.output.clone();
    let word = word.unwrap_or_else(|| PathBuf::from(&recipe.name));
    let inputs = recipe.inputs();
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let new = New::begin(&word, &args.make, &inputs)?;
    let mut build = Build {
        recipe: &recipe,
        work: new.scratch()?,
        transcript: match general.verbose {
            0 => new.scratch()?,
            _ => std::io::stderr().as_fd().try_clone_to_owned()?.into(),
        },
        general,
        began: finished::now(),
    };
    let built = build.unpack().and_then(|()| build.install());
    let summary = built.and_then(|()| build.run_commands()).and_then(|()| {
        build.step("writing the image");
        let size = recipe.size.map(|size| size.0);
        new.fill(size, Limits::default(), |filesystem| {
            build.write(filesystem)
        })
    });
    let summary = summary.map_err(|error| build.explain(&new, error))?;
    new.keep(&summary, general)
}

/// Notices what would be in the way later.
fn check(recipe: &Recipe, args: &BuildArgs) -> Result<()> {
    if let Some(size) = args.make.size {
        recipe::check_size(size).map_err(|why| hinted(why, "leave out --size"))?;
    }
    if args.make.layout == Layout::Disk && !recipe.may_have_a_kernel() {
        return Err(hinted(
            "a disk boots a kernel of its own, and the recipe names none",
            "add linux-image-amd64 to its packages",
        ));
    }
    run::check().context("what is to be built runs in a machine, and none can be started")?;
    if !recipe.commands.is_empty() {
        apppot_backends::user_network().context("the recipe's commands run with a network")?;
    }
    Ok(())
}

/// A build that goes on.
struct Build<'a> {
    recipe: &'a Recipe,
    /// The image that it works on, which has no name.
    work: File,
    /// What is said by programs that are not shown.
    transcript: File,
    general: &'a General,
    began: Time,
}

impl Build<'_> {
    fn step(&self, what: &str) {
        if !self.general.quiet && !self.general.json {
            say(what);
        }
    }

    /// Fetches the packages, and makes an image in which they lie unpacked.
    fn unpack(&mut self) -> Result<()> {
        let files = self.recipe.contents()?;
        self.step(&format!("fetching packages for '{}'", self.recipe.name));
        let bootstrap = Bootstrap::start(self.recipe, &self.transcript)?;
        let options = Options {
            size: Some(WORKING_SIZE),
            ..Options::default()
        };
        let mut filesystem = Filesystem::new(self.work.try_clone()?, options)?;
        bootstrap
            .read(|archive| Ok(filesystem.add_tar(archive, Archive::Plain)?))
            .context("cannot fetch the packages")?;
        let mut add = |path: &str, mode, content: &[u8]| filesystem.add_file(path, mode, content);
        add("etc/hosts", 0o644, b"127.0.0.1 localhost\n")?;
        add("etc/resolv.conf", 0o644, b"")?;
        add("usr/sbin/policy-rc.d", 0o755, include_bytes!("policy-rc.d"))?;
        let staged = |name: &str| format!("{STAGING}/{name}");
        add(&staged("install.sh"), 0o755, include_bytes!("install.sh"))?;
        for (path, executable, content) in files {
            let path = staged(&format!("files/{}", finished::name(&path)?));
            let mode = if executable { 0o755 } else { 0o644 };
            add(&path, mode, &content)?;
        }
        filesystem.finish()?;
        Ok(())
    }

    /// Lets the packages install themselves.
    fn install(&mut self) -> Result<()> {
        self.step("installing them");
        let mut words = vec![String::from("sh"), format!("/{STAGING}/install.sh")];
        words.extend(self.recipe.user.clone());
        match self.run(words, Network::None)? {
            0 => Ok(()),
            status => {
                bail!("the packages cannot be installed: their scripts ended with status {status}")
            }
        }
    }

    fn run_commands(&mut self) -> Result<()> {
        for command in &self.recipe.commands {
            let shown = command.lines().next().unwrap_or_default();
            self.step(&format!("running {shown}"));
            let words = ["sh", "-ec", command].map(String::from).to_vec();
            let network = Network::User {
                host_loopback: false,
            };
            match self.run(words, network)? {
                0 => {}
                status => bail!("the command '{shown}' ended with status {status}"),
            }
        }
        Ok(())
    }

    /// Runs a command as root in the image.
    fn run(&self, words: Vec<String>, network: Network) -> Result<u8> {
        let inside = Inside {
            command: words.into_iter().map(OsString::from).collect(),
            changes: &[],
            any_base: false,
            network,
            runs_image: true,
            transcript: Some(self.transcript.try_clone()?),
        };
        let path = PathBuf::from(descriptor_path(self.work.as_raw_fd()));
        let general = General {
            json: false,
            ..self.general.clone()
        };
        run::inside(&path, inside, &general)
    }

    /// Adds what has been built, and what the recipe says of it.
    fn write(&self, filesystem: &mut Filesystem) -> Result<()> {
        let tree = Ext4::open(Box::new(self.work.try_clone()?), 0)?;
        filesystem.add_tree(&Finished::new(tree, self.began)?)?;
        let mut add = |path: &str, mode, content: &[u8]| filesystem.add_file(path, mode, content);
        add("etc/hostname", 0o644, b"localhost\n")?;
        add("etc/resolv.conf", 0o644, b"")?;
        // An empty one is filled in at the first boot with an init.
        add("etc/machine-id", 0o444, b"")?;
        if let Some(script) = &self.recipe.autorun {
            add("etc/apppot/autorun", 0o755, script.as_bytes())?;
        }
        if let Some(user) = &self.recipe.user {
            let document = workload::of_user(user)?;
            add(workload::PATH, 0o644, document.as_bytes())?;
        }
        let origin = json!({
            "source": format!("recipe {}", self.recipe.name),
            "digest": Digest::of(self.recipe.text.as_bytes()).to_string(),
            "platform": "linux/amd64",
            "labels": self.recipe.labels,
        });
        let text = format!("{origin:#}\n");
        add(ORIGIN, 0o644, text.as_bytes())?;
        Ok(())
    }

    /// Shows what was said last before something failed, and names the cause that the failure itself may
    /// not know of.
    fn explain(&mut self, new: &New, error: anyhow::Error) -> anyhow::Error {
        if self.general.verbose == 0 && !self.general.json {
            for line in self.last_words() {
                say(&line);
            }
        }
        let what = format!("cannot build '{}'", self.recipe.name);
        match crate::files::lacks_space(new.room()) {
            true => hinted(
                format!(
                    "{what}: no space is left in '{}': {error:#}",
                    new.room().display()
                ),
                "free some space, or build elsewhere: --output PATH",
            ),
            false => error.context(what),
        }
    }

    fn last_words(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        let end = self.transcript.seek(SeekFrom::End(0)).unwrap_or(0);
        let _ = self
            .transcript
            .seek(SeekFrom::Start(end.saturating_sub(1 << 16)));
        let _ = (&self.transcript).take(1 << 16).read_to_end(&mut text);
        let text = crate::outcome::printable(&text);
        let lines: Vec<String> = text.lines().map(String::from).collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
    }
}
