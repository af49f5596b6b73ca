//! The contract as tokens.

use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Boot, Contract, Files, Mount, Network, Stdin, User, Workload, Writes};
use crate::store::Store;
use crate::token::{Writer, TERM};

impl Contract {
    /// The contract as tokens, without the version.
    pub(crate) fn write(&self, out: &mut Writer) {
        out.add("id", &self.id);
        if let Some(link) = &self.link {
            out.add("link", link.as_os_str().as_bytes());
        }
        if let Some(root) = &self.root {
            out.add_fields(
                "root",
                &[root.filesystem.as_bytes(), root.source.as_bytes()],
            );
            out.add("writes", root.writes.word());
        }
        for mount in &self.mounts {
            mount.write(out);
        }
        for changes in &self.changes {
            let base: &[u8] = if changes.any_base { b"any" } else { b"own" };
            out.add_fields("changes", &[changes.source.as_os_str().as_bytes(), base]);
        }
        if let Some(files) = &self.files {
            files.write(out);
        }
        out.add("jobdir", self.jobdir.as_os_str().as_bytes());
        if let Some(tmpdir) = &self.tmpdir {
            out.add("tmpdir", tmpdir.as_os_str().as_bytes());
        }
        if let Some(user) = &self.user {
            user.write(out);
        }
        self.workload.write(out);
        out.add("stdin", self.stdin.word());
        if let Some(terminal) = &self.terminal {
            let (rows, columns) = (terminal.rows.to_string(), terminal.columns.to_string());
            out.add_fields("terminal", &[rows.as_bytes(), columns.as_bytes()]);
            out.add(TERM, &terminal.term);
        }
        out.add("umask", format!("{:04o}", self.umask));
        for (name, value) in &self.env {
            out.add("env", [name.as_bytes(), b"=", value.as_bytes()].concat());
        }
        if let Some(hostname) = &self.hostname {
            out.add("hostname", hostname);
        }
        if let Some(network) = &self.network {
            network.write(out);
        }
        Self::write_times(self.deadline, self.grace, out);
        out.add("boot", self.boot.word());
        self.store.write(out);
    }

    pub(crate) fn write_times(deadline: Option<SystemTime>, grace: Duration, out: &mut Writer) {
        if let Some(deadline) = deadline {
            let since = deadline.duration_since(UNIX_EPOCH).unwrap_or_default();
            out.add("deadline", since.as_millis().to_string());
        }
        out.add("grace", grace.as_millis().to_string());
    }
}

impl Mount {
    fn write(&self, out: &mut Writer) {
        out.add_fields(
            "mount",
            &[
                self.channel.word().as_bytes(),
                self.source.as_bytes(),
                self.target.as_os_str().as_bytes(),
                if self.read_only { b"ro" } else { b"rw" },
            ],
        );
    }
}

impl Files {
    fn write(&self, out: &mut Writer) {
        let target = self.target.as_os_str().as_bytes();
        out.add_fields("files", &[self.channel.word().as_bytes(), target]);
        if let Some(ring) = &self.ring {
            out.add("files-ring", ring.as_os_str().as_bytes());
        }
        for pattern in &self.results {
            out.add("results", pattern);
        }
    }
}

impl Store {
    pub(crate) fn write(&self, out: &mut Writer) {
        for (name, url) in self.objects() {
            out.add_fields("store", &[name.as_bytes(), url.secret().as_bytes()]);
        }
    }
}

impl Network {
    fn write(&self, out: &mut Writer) {
        let fields = [
            self.interface.clone(),
            format!("{}/{}", self.address, self.prefix),
            self.gateway.to_string(),
            self.nameserver.to_string(),
        ];
        out.add_fields("network", &fields.each_ref().map(|field| field.as_bytes()));
    }
}

impl User {
    fn write(&self, out: &mut Writer) {
        out.add("user", &self.name);
        out.add("uid", self.uid.to_string());
        out.add("group", &self.group);
        out.add("gid", self.gid.to_string());
        if !self.groups.is_empty() {
            let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
            out.add("groups", groups.join(","));
        }
        if let Some(account) = &self.account {
            out.add("account", account);
        }
    }
}

impl Workload {
    fn write(&self, out: &mut Writer) {
        match self {
            Workload::Command(argv) => {
                for arg in argv {
                    out.add("arg", arg.as_bytes());
                }
            }
            Workload::Default => {}
            Workload::Shell => out.add("shell", "yes"),
        }
    }
}

impl Writes {
    pub(super) fn word(self) -> &'static str {
        match self {
            Writes::Memory => "memory",
            Writes::Device => "device",
        }
    }
}

impl Boot {
    pub(super) fn word(self) -> &'static str {
        match self {
            Boot::Direct => "direct",
            Boot::System => "system",
        }
    }
}

impl Stdin {
    fn word(&self) -> &[u8] {
        match self {
            Stdin::Null => b"null",
            Stdin::Link => b"link",
            Stdin::Ring(device) => device.as_os_str().as_bytes(),
        }
    }
}
