//! The user: the caller, known to the appliance (paper, section 5, step c).
//!
//! Files of the host are accessed with the caller's rights, so the job runs under the caller's
//! numbers. The appliance's account with that uid serves; else its regular user gets the numbers,
//! as the first AppPot did; else an account is made.

use std::fs;
use std::io;
use std::os::unix::fs::{lchown, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use apppot_contract::{Contract, User};

use crate::failure::{Failure, Step};
use crate::files;

/// Who runs the job, as the appliance knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// Regular users' numbers (login.defs(5), UID_MIN and UID_MAX of Debian, Fedora and others).
const REGULAR: std::ops::Range<u32> = 1000..60000;

/// Finds or makes the account of the contract's user below `root`.
pub(crate) fn become_known(root: &Path, contract: &Contract) -> Result<Identity, Failure> {
    let step = "making the user's account";
    let passwd = read(&root.join("etc/passwd")).step(step)?;
    let Some(user) = &contract.user else {
        return Ok(superuser(&passwd));
    };
    let group = read(&root.join("etc/group")).step(step)?;
    let mapped = map(&passwd, &group, user).step(step)?;
    write_changed(&root.join("etc/group"), &group, &mapped.group).step(step)?;
    write_changed(&root.join("etc/passwd"), &passwd, &mapped.passwd).step(step)?;
    if mapped.passwd != passwd {
        make_home(root, &mapped.identity, mapped.was).step("making the user's home directory")?;
    }
    Ok(mapped.identity)
}

/// A missing file is an empty one: the root directory of a container has no accounts.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    match files::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

pub(crate) fn write_changed(path: &Path, before: &str, after: &str) -> io::Result<()> {
    if before == after {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let new = path.with_extension("apppot-new");
    fs::write(&new, after)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
    fs::rename(new, path)
}

/// One line of passwd(5).
#[derive(Debug, Clone)]
struct Account<'a> {
    fields: [&'a str; 7],
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let account = Account {
            fields: fields.try_into().ok()?,
        };
        account.fields[2].parse::<u32>().ok()?;
        Some(account)
    }

    fn uid(&self) -> Option<u32> {
        self.fields[2].parse().ok()
    }

    fn home(&self) -> PathBuf {
        absolute_or(self.fields[5], "/")
    }

    fn shell(&self) -> PathBuf {
        absolute_or(self.fields[6], "/bin/sh")
    }
}

fn absolute_or(text: &str, fallback: &str) -> PathBuf {
    let path = if text.starts_with('/') {
        text
    } else {
        fallback
    };
    PathBuf::from(path)
}

fn superuser(passwd: &str) -> Identity {
    let account = passwd
        .lines()
        .filter_map(Account::parse)
        .find(|account| account.uid() == Some(0));
    Identity {
        name: String::from("root"),
        uid: 0,
        gid: 0,
        groups: vec![0],
        home: account
            .as_ref()
            .map_or_else(|| PathBuf::from("/root"), Account::home),
        shell: account
            .as_ref()
            .map_or_else(|| PathBuf::from("/bin/sh"), Account::shell),
    }
}

/// The account files with the user in them.
struct Mapped {
    passwd: String,
    group: String,
    identity: Identity,
    /// The number that the account had before.
    was: Option<u32>,
}

fn map(passwd: &str, group: &str, user: &User) -> Result<Mapped, String> {
    let accounts = || passwd.lines().filter_map(Account::parse);
    if let Some(name) = &user.account {
        let account = accounts().find(|account| account.fields[0] == name);
        let account = account.ok_or_else(|| format!("the appliance has no account '{name}'"))?;
        return Ok(renumber(passwd, with_group(group, user), &account, user));
    }
    let same = accounts().find(|account| account.uid() == Some(user.uid));
    let mut regular =
        accounts().filter(|account| account.uid().is_some_and(|uid| REGULAR.contains(&uid)));
    let group = with_group(group, user);
    if let Some(account) = same {
        return Ok(Mapped {
            passwd: passwd.to_owned(),
            group,
            identity: identity(account.fields[0], account.home(), account.shell(), user),
            was: None,
        });
    }
    if let Some(account) = regular.next() {
        return Ok(renumber(passwd, group, &account, user));
    }
    let name = free_name(passwd, &user.name);
    let home = PathBuf::from(format!("/home/{name}"));
    let line = format!(
        "{name}:x:{}:{}::{}:/bin/sh\n",
        user.uid,
        user.gid,
        home.display()
    );
    Ok(Mapped {
        passwd: appended(passwd, &line),
        group,
        identity: identity(&name, home, PathBuf::from("/bin/sh"), user),
        was: None,
    })
}

fn identity(name: &str, home: PathBuf, shell: PathBuf, user: &User) -> Identity {
    Identity {
        name: name.to_owned(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        home,
        shell,
    }
}

/// Gives `account` the user's numbers. Its line comes first, so that the number has its name even
/// where another account has the same.
fn renumber(passwd: &str, group: String, account: &Account, user: &User) -> Mapped {
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let mut fields = account.fields;
    fields[2] = &uid;
    fields[3] = &gid;
    let mut out = fields.join(":");
    for line in passwd.lines() {
        let same = Account::parse(line).is_some_and(|other| other.fields[0] == account.fields[0]);
        if !same {
            out.push('\n');
            out.push_str(line);
        }
    }
    out.push('\n');
    let unchanged = account.uid() == Some(user.uid) && fields[3] == account.fields[3];
    Mapped {
        passwd: if unchanged { passwd.to_owned() } else { out },
        group,
        identity: identity(account.fields[0], account.home(), account.shell(), user),
        was: account.uid(),
    }
}

/// The group file with the user's group, under another name when the name has another number.
fn with_group(group: &str, user: &User) -> String {
    let mut names = Vec::new();
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [name, _, gid, ..] = fields[..] {
            if gid == user.gid.to_string() {
                return group.to_owned();
            }
            names.push(name);
        }
    }
    let name = match names.contains(&user.group.as_str()) {
        true => format!("gid{}", user.gid),
        false => user.group.clone(),
    };
    appended(group, &format!("{name}:x:{}:\n", user.gid))
}

/// A system account may have the caller's name.
fn free_name(passwd: &str, wanted: &str) -> String {
    let taken = |name: &str| {
        passwd
            .lines()
            .any(|line| line.split(':').next() == Some(name))
    };
    match taken(wanted) {
        true => format!("{wanted}-host"),
        false => wanted.to_owned(),
    }
}

pub(crate) fn appended(text: &str, line: &str) -> String {
    let newline = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{text}{newline}{line}")
}

/// Makes the home directory, or gives it to the account's new number.
fn make_home(root: &Path, identity: &Identity, was: Option<u32>) -> io::Result<()> {
    let home = root.join(identity.home.strip_prefix("/").unwrap_or(&identity.home));
    if !home.exists() {
        fs::create_dir_all(&home)?;
        return lchown(&home, Some(identity.uid), Some(identity.gid));
    }
    match was {
        Some(was) => give(&home, was, identity),
        None => Ok(()),
    }
}

/// Gives what belonged to `was` to the account, staying on the appliance's filesystem. (In an overlay
/// only directories share a device number.)
fn give(path: &Path, was: u32, identity: &Identity) -> io::Result<()> {
    let device = fs::symlink_metadata(path)?.dev();
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() && metadata.dev() != device {
            continue;
        }
        if metadata.uid() == was {
            lchown(&path, Some(identity.uid), Some(identity.gid))?;
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        daemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n\
        user:x:1000:1000:,,,:/home/user:/bin/bash\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nuser:x:1000:\n";

    fn caller(name: &str, uid: u32, group: &str, gid: u32) -> User {
        User {
            name: name.to_owned(),
            uid,
            group: group.to_owned(),
            gid,
            groups: vec![gid, 27],
            account: None,
        }
    }

    #[test]
    fn an_account_with_the_same_uid_serves_as_it_is() {
        let mapped = map(PASSWD, GROUP, &caller("ada", 1000, "ada", 1000)).unwrap();
        assert_eq!(mapped.passwd, PASSWD);
        assert_eq!(mapped.group, GROUP);
        assert_eq!(mapped.identity.name, "user");
        assert_eq!(mapped.identity.home, Path::new("/home/user"));
        assert_eq!(mapped.identity.groups, [1000, 27]);
    }

    #[test]
    fn the_regular_user_gets_the_callers_numbers() {
        let mapped = map(PASSWD, GROUP, &caller("ada", 54321, "staff", 50000)).unwrap();
        assert!(mapped
            .passwd
            .starts_with("user:x:54321:50000:,,,:/home/user:/bin/bash\nroot:x:0:0:"));
        assert_eq!(mapped.passwd.lines().count(), 3);
        assert!(mapped.group.ends_with("\nstaff:x:50000:\n"));
        assert_eq!((mapped.identity.uid, mapped.was), (54321, Some(1000)));
    }

    #[test]
    fn an_account_is_made_where_there_is_no_regular_user() {
        let system = "root:x:0:0::/root:/bin/sh\nada:x:5:5::/:/bin/false";
        let mapped = map(system, "users:x:100:", &caller("ada", 1234, "users", 1234)).unwrap();
        assert!(mapped
            .passwd
            .ends_with("\nada-host:x:1234:1234::/home/ada-host:/bin/sh\n"));
        assert!(mapped.group.ends_with("\ngid1234:x:1234:\n"));
        let mapped = map("", "", &caller("ada", 1234, "users", 1234)).unwrap();
        assert_eq!(mapped.passwd, "ada:x:1234:1234::/home/ada:/bin/sh\n");
    }

    #[test]
    fn a_chosen_account_is_taken_or_missed() {
        let mut user = caller("ada", 1000, "ada", 1000);
        user.account = Some(String::from("daemon"));
        let mapped = map(PASSWD, GROUP, &user).unwrap();
        assert!(mapped.passwd.starts_with("daemon:x:1000:1000:"));
        assert_eq!(mapped.identity.name, "daemon");
        user.account = Some(String::from("nobody-knows"));
        assert!(map(PASSWD, GROUP, &user).is_err());
    }

    #[test]
    fn root_needs_no_account() {
        assert_eq!(superuser(PASSWD).shell, Path::new("/bin/bash"));
        assert_eq!(superuser("").home, Path::new("/root"));
    }

    #[test]
    fn mapping_twice_changes_nothing_more() {
        let user = caller("ada", 54321, "staff", 50000);
        let once = map(PASSWD, GROUP, &user).unwrap();
        let twice = map(&once.passwd, &once.group, &user).unwrap();
        assert_eq!((once.passwd, once.group), (twice.passwd, twice.group));
    }

    #[test]
    fn a_whole_root_is_mapped() {
        let root = tempfile::tempdir().unwrap();
        let contract = Contract {
            user: Some(caller("ada", 1234, "ada", 1234)),
            ..Contract::default()
        };
        fs::create_dir(root.path().join("etc")).unwrap();
        // Only root may give files away; in a test nothing has to be given.
        fs::create_dir_all(root.path().join("home/ada")).unwrap();
        let identity = become_known(root.path(), &contract).unwrap();
        assert_eq!(identity.name, "ada");
        let text = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert!(text("etc/passwd").contains("ada:x:1234"));
        assert!(text("etc/group").contains("ada:x:1234"));
    }
}
