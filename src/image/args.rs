//! The command line of `apppot image`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::new_file;
use crate::units::Size;

/// `apppot image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image of a directory, a tar archive or a container image
    #[command(after_long_help = IMPORT_HELP)]
    Import(ImportArgs),
    /// Build an image of a recipe: a distribution's packages, files, commands
    #[command(after_long_help = BUILD_HELP)]
    Build(BuildArgs),
    /// Show what an image is and what is in it
    Info {
        /// A path, or a name in the store
        image: PathBuf,
    },
    /// Sign images and changes archives: FILE.minisig beside FILE
    Sign {
        /// The secret key that 'minisign -G' made (default: minisign's own)
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// What to say, and sign too (default: the time and the file's name)
        #[arg(long, value_name = "TEXT", value_parser = comment)]
        comment: Option<String>,
        /// The images and archives
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Check the filesystems of images, or signatures
    Verify(VerifyArgs),
    /// Give an image another size
    Resize {
        /// A path, or a name in the store
        image: PathBuf,
        /// The new size, such as 4G
        size: Size,
    },
    /// Make an image of layout disk known to a cloud, which boots machines of it
    #[command(after_long_help = PUBLISH_HELP)]
    Publish(PublishArgs),
    /// List the images of the store
    List,
    /// Remove images from the store
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<PathBuf>,
    },
    /// Write everything that is in an image as a tar archive
    Export {
        /// A path, or a name in the store
        image: PathBuf,
        /// Where to write it (default, or '-': standard output)
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

const IMPORT_HELP: &str = "\
SOURCE is a directory that holds a root filesystem, a tar archive of one (also
compressed with gzip, zstd, xz or bzip2), an image of AppPot's, an archive that
'docker save' wrote, an OCI layout (a directory or a tar archive), or an image in a
registry:

  docker://debian:12  docker://registry.example.org/group/app@sha256:...

The tag of an image among several follows the path: oci:DIR:TAG, docker-archive:FILE:TAG.

With --layout disk SOURCE must hold a kernel (on Debian: linux-image-amd64).

IMAGE is a path, or a name in the store ($XDG_DATA_HOME/apppot/images) if it has no
slash and does not end in .img, .raw, .squashfs or .erofs.";

const BUILD_HELP: &str = "\
RECIPE says in TOML what the image is to be; docs/images.md describes the keys:

  packages = [\"apt\", \"octave\", \"passwd\"]
  user = \"user\"
  commands = [\"echo made here >/etc/motd\"]

Packages are fetched by mmdebstrap, without privileges, and kept in ~/.cache/apppot/packages. Their
scripts and the commands run in the appliance itself.";

const PUBLISH_HELP: &str = "\
Credentials, region and endpoints are found where the AWS tools find them:
AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL and others,
~/.aws/credentials, ~/.aws/config. They stay here.

Only blocks that are not all zeros are sent. An upload that was stopped goes on
when the command is given again, and an image that the cloud has already is found
by its SHA-256. Prints the id of the cloud's image.";

/// Kinds of clouds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cloud {
    /// Amazon's, and those that have its interfaces
    Ec2,
}

/// `apppot image publish`.
#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// The kind of cloud
    #[arg(value_enum)]
    pub(crate) cloud: Cloud,
    /// A path, or a name in the store
    pub(crate) image: PathBuf,
    /// Name of the cloud's image, unique there (default: made of the file's name and SHA-256)
    #[arg(long, value_parser = cloud_name)]
    pub(crate) name: Option<String>,
}

/// `apppot image verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Verify the signature beside each file instead, also of changes archives
    #[arg(long)]
    pub(crate) signature: bool,
    /// A public key, or the file that holds it (default: the trusted keys of the configuration)
    #[arg(long, value_name = "KEY", requires = "signature")]
    pub(crate) public_key: Vec<String>,
    /// Compare the file with this SHA-256, too
    #[arg(long, value_name = "HEX", conflicts_with = "signature")]
    pub(crate) sha256: Option<String>,
    /// Paths, or names in the store
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) files: Vec<PathBuf>,
}

/// Formats of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A raw partition that can be written to
    Ext4,
    /// Compressed, only read: a base that many share (needs mksquashfs)
    Squashfs,
}

/// Layouts of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// One filesystem, which launchers boot with their own kernel
    Partition,
    /// A whole disk with kernel, boot loader and agent: for BIOS, UEFI and clouds, too
    Disk,
}

/// Options of the commands that make images.
#[derive(Debug, Args)]
pub(crate) struct MakeArgs {
    /// What kind of image to make
    #[arg(long, value_enum, default_value = "ext4")]
    pub(crate) format: Format,
    /// Whether the image is a partition, or a disk that also boots by itself
    #[arg(long, value_enum, default_value = "partition")]
    pub(crate) layout: Layout,
    /// Size of the filesystem (default: a quarter and 128M more than what is in it)
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// Replace an image that is there
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `apppot image build`.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// A recipe's file, or debian, fortran or python-plot
    #[arg(default_value = "debian")]
    pub(crate) recipe: PathBuf,
    /// The image: a path, or a name in the store (default: the recipe's name)
    #[arg(short, long, value_name = "IMAGE", value_parser = new_file())]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) make: MakeArgs,
}

/// `apppot image import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// What to make the image of
    pub(crate) source: String,
    /// The image: a path, or a name in the store
    #[arg(value_parser = new_file())]
    pub(crate) image: PathBuf,
    #[command(flatten)]
    pub(crate) make: MakeArgs,
    /// Most bytes that the source may unpack to
    #[arg(long, value_name = "SIZE", default_value = "64G")]
    pub(crate) max_size: Size,
    /// Platform of a container image, such as linux/arm64 (default: this machine's)
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Speak to the registry without encryption
    #[arg(long)]
    pub(crate) plain_http: bool,
}

/// What EC2 takes as the name of an image.
fn cloud_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    match (3..=128).contains(&text.len()) && text.chars().all(allowed) {
        true => Ok(text.to_owned()),
        false => Err(String::from(
            "a name has 3 to 128 letters, digits, spaces and characters among ()[]./-'@_",
        )),
    }
}

/// A signature's comment is one line.
fn comment(text: &str) -> Result<String, String> {
    match text.chars().any(char::is_control) {
        true => Err(String::from("a comment is one line of text")),
        false => Ok(text.to_owned()),
    }
}
