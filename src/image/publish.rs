//! `apppot image publish`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apppot_backends::flock::{self, Use};
use apppot_backends::image::{Image, ImageKind};
use apppot_cloud::publish::{length, survey, Event, Journal, Publisher, Survey};
use apppot_cloud::{CloudImage, Config, BLOCK};
use serde_json::json;

use super::args::PublishArgs;
use super::store;
use crate::cli::General;
use crate::failure::{hinted, print_out, say};
use crate::progress::Progress;

/// Publishes an image, and prints the id of the cloud's.
pub(super) fn publish(args: &PublishArgs, general: &General) -> Result<()> {
    let image = Image::open(&store::resolve(&args.image))?;
    let cannot = || format!("cannot publish '{}'", image.path.display());
    boots_itself(&image).with_context(cannot)?;
    let config = Config::load(&|name: &str| std::env::var(name).ok()).with_context(cannot)?;
    let file = File::open(&image.path).with_context(cannot)?;
    image.check(&file)?;
    let survey = read(&file, general).with_context(cannot)?;
    let publisher = Publisher::new(&config, &file, &survey).with_context(cannot)?;
    let found = publisher.find().with_context(cannot)?;
    let published = match found {
        Some(found) => Published {
            image: found,
            sent: 0,
            is_new: false,
        },
        None => {
            let name = match &args.name {
                Some(name) => name.clone(),
                None => default_name(&image.path, &survey.sha256),
            };
            send(&publisher, &config, &survey, &name, general).with_context(cannot)?
        }
    };
    published.show(&config, &survey, general);
    Ok(())
}

/// A cloud starts what is on the disk, and nothing else.
fn boots_itself(image: &Image) -> Result<()> {
    if image.kind == ImageKind::Disk && image.boots_itself {
        return Ok(());
    }
    Err(hinted(
        format!("it is {} that does not boot by itself", image.kind),
        format!(
            "make one that does: apppot image import {} NEW.img --layout disk",
            image.path.display()
        ),
    ))
}

/// Looks at every byte of the image.
fn read(file: &File, general: &General) -> Result<Survey> {
    let size = length(file)?;
    let mut progress = Progress::start("reading the image", size, is_shown(general));
    let survey = survey(file, &mut |bytes| progress.add(bytes));
    progress.end();
    Ok(survey?)
}

fn is_shown(general: &General) -> bool {
    !general.quiet && !general.json
}

/// What has become of the image.
struct Published {
    image: CloudImage,
    /// Blocks that were sent.
    sent: usize,
    is_new: bool,
}

/// Makes the cloud's image, noting how far it is.
fn send(
    publisher: &Publisher<'_>,
    config: &Config,
    survey: &Survey,
    name: &str,
    general: &General,
) -> Result<Published> {
    let (journal, path) = open_journal(config, survey)?;
    let mut journal = Journal::open(journal)?;
    let mut progress = Progress::start("sending blocks", 0, is_shown(general));
    let mut sent = 0;
    let description = format!("AppPot image, SHA-256 {}", survey.sha256);
    let image = publisher.publish(name, &description, &mut journal, &mut |event| match event {
        Event::Left(blocks) => progress.of(blocks as u64 * BLOCK),
        Event::Sent => {
            sent += 1;
            progress.add(BLOCK);
        }
        Event::Waiting => {}
    });
    progress.end();
    let image = image?;
    // What was noted is of no use any more; should it stay, it does no harm.
    let _ = path.map(std::fs::remove_file);
    Ok(Published {
        image,
        sent,
        is_new: true,
    })
}

/// The journal of this image's upload into this cloud, ours alone. Without a home directory it has no name,
/// and an upload that is stopped begins anew.
fn open_journal(config: &Config, survey: &Survey) -> Result<(File, Option<PathBuf>)> {
    let Some(cache) = crate::caller::cache_directory() else {
        return Ok((tempfile::tempfile()?, None));
    };
    let directory = cache.join("publish");
    let path = directory.join(format!("{}-{}", config.place(), survey.sha256));
    let cannot = || format!("cannot write '{}'", path.display());
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(&directory).with_context(cannot)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    let file = options.open(&path).with_context(cannot)?;
    flock::take(&file, &path, Use::Writing).map_err(|_| {
        hinted(
            "another process publishes the same image",
            "wait for it to end",
        )
    })?;
    Ok((file, Some(path)))
}

/// The file's name with the first digits of its checksum, of characters that every cloud takes.
fn default_name(path: &Path, sha256: &str) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| match c.is_ascii_alphanumeric() || "._-".contains(c) {
        true => c,
        false => '-',
    };
    let stem: String = stem.chars().take(64).map(plain).collect();
    format!("apppot-{stem}-{}", &sha256[..16])
}

impl Published {
    fn show(&self, config: &Config, survey: &Survey, general: &General) {
        let image = &self.image;
        if general.json {
            let value = json!({
                "image": image.id,
                "name": image.name,
                "snapshot": image.snapshot,
                "region": config.region,
                "sha256": survey.sha256,
                "new": self.is_new,
                "blocks": survey.blocks.len(),
                "blocks-sent": self.sent,
            });
            print_out(&format!("{value:#}\n"));
            return;
        }
        if !general.quiet {
            let mib = |blocks: usize| blocks as u64 * BLOCK >> 20;
            let how = match self.is_new {
                true => format!(
                    "{} MiB sent of {} MiB",
                    mib(self.sent),
                    survey.size.div_ceil(1 << 20)
                ),
                false => String::from("published before"),
            };
            say(&format!("{}, in {}: {how}", image.name, config.region));
        }
        print_out(&format!("{}\n", image.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_characters_that_clouds_take() {
        let name = default_name(Path::new("/x/my büro\u{7}.img"), &"ab".repeat(32));
        assert_eq!(name, "apppot-my-b-ro--abababababababab");
    }
}
