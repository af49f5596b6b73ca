//! The machine's name, and that programs can look it up: sudo(8) and others complain otherwise.

use std::io;
use std::path::Path;

use apppot_contract::{Contract, Writes};

use crate::accounts::{appended, read, write_changed};
use crate::failure::{Failure, Step};

/// Gives the machine its name. Where writes vanish it is the contract's, and `/etc/hosts` below
/// `root` gets to know it, as the account files get to know the user; where they are kept, and where
/// there is no user but root, the image's files stay as they are.
pub(crate) fn set(root: &Path, contract: &Contract) -> Result<(), Failure> {
    let step = "setting the host name";
    let given = contract.hostname.as_deref();
    if !is_kept(contract) {
        let Some(name) = given else {
            return Ok(());
        };
        nix::unistd::sethostname(name).step(step)?;
        return make_known(root, contract, name).step("writing /etc/hosts");
    }
    let hosts = read(&root.join("etc/hosts")).step(step)?;
    let own = read(&root.join("etc/hostname")).step(step)?;
    match choose(given, own.split_whitespace().next(), &hosts) {
        Some(name) => nix::unistd::sethostname(name).step(step),
        None => Ok(()),
    }
}

/// As [`set`], for a system whose own init has given it a name.
pub(crate) fn make_own_known(root: &Path, contract: &Contract) -> io::Result<()> {
    match nix::unistd::gethostname()?.to_str() {
        Some(name) => make_known(root, contract, name),
        None => Ok(()),
    }
}

fn is_kept(contract: &Contract) -> bool {
    let root = contract.root.as_ref();
    root.is_some_and(|root| root.writes == Writes::Device)
}

/// The name of an image that is kept: the first that it knows, its `own` first.
fn choose<'a>(given: Option<&'a str>, own: Option<&'a str>, hosts: &str) -> Option<&'a str> {
    let known = [own, given, Some("localhost")]
        .into_iter()
        .flatten()
        .find(|name| knows(hosts, name));
    known.or(own).or(given)
}

/// Whether hosts(5) has `name`.
fn knows(hosts: &str, name: &str) -> bool {
    hosts.lines().any(|line| {
        let names = line.split('#').next().unwrap_or("").split_whitespace();
        names.skip(1).any(|other| other == name)
    })
}

fn make_known(root: &Path, contract: &Contract, name: &str) -> io::Result<()> {
    if contract.user.is_none() || is_kept(contract) {
        return Ok(());
    }
    let path = root.join("etc/hosts");
    let hosts = read(&path)?;
    if knows(&hosts, name) {
        return Ok(());
    }
    let line = format!("127.0.1.1 {name}\n");
    write_changed(&path, &hosts, &appended(&hosts, &line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(writes: Writes) -> Contract {
        Contract {
            user: Some(apppot_contract::User {
                name: String::from("ada"),
                uid: 1000,
                group: String::from("ada"),
                gid: 1000,
                groups: vec![],
                account: None,
            }),
            hostname: Some(String::from("node7")),
            root: Some(apppot_contract::Root {
                filesystem: String::from("ext4"),
                source: "/dev/x".into(),
                writes,
            }),
            ..Contract::default()
        }
    }

    #[test]
    fn a_kept_image_has_a_name_that_it_knows() {
        for (own, hosts, name) in [
            (Some("pot"), "127.0.0.1 localhost pot\n", "pot"),
            (Some("pot"), "127.0.0.1 localhost #pot\n", "localhost"),
            (Some("pot"), "127.0.1.1 node7\n", "node7"),
            (Some("pot"), "", "pot"),
            (None, "", "node7"),
        ] {
            let chosen = choose(Some("node7"), own, hosts);
            assert_eq!(chosen, Some(name), "{own:?} {hosts}");
        }
    }

    #[test]
    fn only_what_vanishes_is_changed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let path = root.path().join("etc/hosts");
        make_known(root.path(), &contract(Writes::Device), "node7").unwrap();
        let of_root = Contract {
            user: None,
            ..contract(Writes::Memory)
        };
        make_known(root.path(), &of_root, "node7").unwrap();
        assert!(!path.exists());
        for _ in 0..2 {
            make_known(root.path(), &contract(Writes::Memory), "node7").unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "127.0.1.1 node7\n");
    }
}
