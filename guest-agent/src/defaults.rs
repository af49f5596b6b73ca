//! What the image itself says about jobs: `/etc/apppot/workload`, a document in the contract's grammar that
//! `apppot image import` makes of a container image's configuration. Of its words those count that
//! describe a container: command, environment, working directory, account.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use apppot_contract::{document, Contract, Workload};

use crate::failure::{Failure, Step};
use crate::files;

/// Where it is.
const PATH: &str = "etc/apppot/workload";

/// What runs when the contract leaves it to the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageCommand {
    /// The command and its arguments; never empty.
    pub(crate) argv: Vec<OsString>,
    /// Where it runs; `None` for the job directory.
    pub(crate) directory: Option<PathBuf>,
}

/// Reads what the image below `root` says. The contract gets its environment, below its own, and its
/// account, if it names none; the command is returned.
pub(crate) fn read(root: &Path, contract: &mut Contract) -> Result<Option<ImageCommand>, Failure> {
    let text = match files::read(&root.join(PATH)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).step("reading the image's /etc/apppot/workload"),
    };
    let image = document::decode(&text).step("reading the image's /etc/apppot/workload")?;
    let own = std::mem::replace(&mut contract.env, image.env);
    contract.env.extend(own);
    if let (Some(user), Some(named)) = (&mut contract.user, image.user) {
        let wanted = named.account.filter(|_| user.account.is_none());
        user.account = wanted
            .and_then(|name| account(root, &name))
            .or(user.account.take());
    }
    let Workload::Command(argv) = image.workload else {
        return Ok(None);
    };
    let directory = (image.jobdir != Path::new("/")).then_some(image.jobdir);
    Ok(Some(ImageCommand { argv, directory }))
}

/// The appliance's account of that name or number; none for root, as the job runs under the caller's
/// numbers.
fn account(root: &Path, wanted: &str) -> Option<String> {
    let passwd = std::fs::read(root.join("etc/passwd")).ok()?;
    let passwd = String::from_utf8_lossy(&passwd);
    let found = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?);
        (name == wanted || uid == wanted).then_some((name, uid))
    });
    found
        .filter(|(_, uid)| *uid != "0")
        .map(|(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use apppot_contract::User;

    fn image(document: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/apppot")).unwrap();
        std::fs::write(root.path().join(PATH), document).unwrap();
        std::fs::write(
            root.path().join("etc/passwd"),
            "root:x:0:0::/:\napp:x:77:77::/app:\n",
        )
        .unwrap();
        root
    }

    fn contract() -> Contract {
        Contract {
            env: vec![("A".into(), "job".into())],
            user: Some(User {
                name: String::from("jo"),
                uid: 1000,
                group: String::from("jo"),
                gid: 1000,
                groups: vec![],
                account: None,
            }),
            ..Contract::default()
        }
    }

    #[test]
    fn the_contracts_words_come_after_the_images() {
        let root = image(
            "#apppot/1\napppot.arg=/bin/serve\napppot.arg=-x\napppot.env=A%3Dimage\napppot.jobdir=/srv\n\
             apppot.user=77\napppot.uid=0\napppot.group=app\napppot.gid=0\napppot.account=77\n",
        );
        let mut contract = contract();
        let command = read(root.path(), &mut contract).unwrap().unwrap();
        assert_eq!(command.argv, ["/bin/serve", "-x"]);
        assert_eq!(command.directory.as_deref(), Some(Path::new("/srv")));
        let env = [("A".into(), "image".into()), ("A".into(), "job".into())];
        assert_eq!(contract.env, env);
        assert_eq!(contract.user.unwrap().account.as_deref(), Some("app"));
    }

    #[test]
    fn an_image_may_say_nothing_and_must_not_say_nonsense() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(root.path(), &mut contract()).unwrap(), None);
        assert!(read(image("nonsense\n").path(), &mut contract()).is_err());
        let mut contract = contract();
        let root = image("#apppot/1\napppot.user=root\napppot.uid=0\napppot.group=root\napppot.gid=0\napppot.account=root\n");
        assert_eq!(read(root.path(), &mut contract).unwrap(), None);
        assert_eq!(contract.user.unwrap().account, None);
    }
}
