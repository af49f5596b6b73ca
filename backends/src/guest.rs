//! The guest's half of a contract: what a guest calls what its hypervisor provides.

use std::path::PathBuf;

use apppot_contract::{Changes, Channel, Contract, Mount, Root, Stdin, Writes as GuestWrites};

use crate::network;
use crate::spec::{MachineSpec, Network, Writes};

/// Names that a guest has for what its hypervisor provides.
#[derive(Debug)]
pub(crate) struct Names {
    /// The device of the link.
    pub(crate) link: &'static str,
    /// The device of the image.
    pub(crate) image: String,
    /// How a root directory is reached, and as what.
    pub(crate) directory: (Channel, String),
    /// The devices of the changes archives.
    pub(crate) changes: Vec<String>,
    /// How shared directories are reached.
    pub(crate) live: Channel,
    /// What their filesystem takes as sources.
    pub(crate) shares: Vec<String>,
    /// The device of the ring for standard input, when there is one.
    pub(crate) ring: Option<String>,
    /// The device of the ring for the job's files, when there is one.
    pub(crate) files_ring: Option<String>,
    /// The network interface.
    pub(crate) network: &'static str,
}

impl Names {
    /// The contract of `spec` with the guest's half.
    pub(crate) fn complete(self, spec: &MachineSpec) -> Contract {
        let mut contract = spec.contract.clone();
        contract.link = Some(PathBuf::from(self.link));
        contract.root = Some(root(spec, self.image, self.directory));
        contract.changes = (self.changes.into_iter().zip(&spec.changes))
            .map(|(source, changes)| Changes {
                source: source.into(),
                any_base: changes.any_base,
            })
            .collect();
        contract.mounts = (self.shares.into_iter().zip(&spec.shares))
            .map(|(source, share)| Mount {
                channel: self.live,
                source: source.into(),
                target: share.guest.clone(),
                read_only: share.read_only,
            })
            .collect();
        if let Some(files) = &mut contract.files {
            files.ring = self.files_ring.map(PathBuf::from);
        }
        if spec.network != Network::None {
            contract.network = Some(network::contract(self.network));
        }
        if let Some(ring) = self.ring {
            contract.stdin = Stdin::Ring(ring.into());
        }
        contract
    }
}

fn root(spec: &MachineSpec, image: String, directory: (Channel, String)) -> Root {
    let writes = match spec.writes {
        Writes::Memory => GuestWrites::Memory,
        Writes::Overlay(_) | Writes::Image => GuestWrites::Device,
    };
    match spec.image.filesystem {
        None => Root {
            filesystem: directory.0.word().to_owned(),
            source: directory.1.into(),
            writes,
        },
        Some(filesystem) => {
            let partition = spec.image.partition.map(|number| number.to_string());
            Root {
                filesystem: filesystem.to_owned(),
                source: format!("{image}{}", partition.unwrap_or_default()).into(),
                writes,
            }
        }
    }
}
