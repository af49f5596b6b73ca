//! `apppot image import` from a registry.

use std::fs;
use std::path::{Path, PathBuf};

use crate::import::{greets, image, layout, text};
use crate::support::tools::tool;
use crate::support::{eventually, processes, Job};

/// A registry on this machine, ended when it is dropped.
struct Registry {
    child: std::process::Child,
    address: String,
    data: PathBuf,
}

impl Registry {
    fn start(job: &Job) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let data = job.directory_beside("registry");
        let config = job.beside("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = std::process::Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let child = processes::spawn(&mut command).unwrap();
        eventually("the registry answers", || {
            std::net::TcpStream::connect(&address).is_ok()
        });
        Registry {
            child,
            address,
            data,
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_from_a_registry() {
    let Some(job) = Job::new() else { return };
    let layout = layout(&job);
    let registry = Registry::start(&job);
    let name = format!("{}/group/app:v1", registry.address);
    let from = format!("oci:{}:app", text(&layout));
    let to = format!("docker://{name}");
    tool(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "-q",
            "--dest-tls-verify=false",
            &from,
            &to,
        ],
    );
    let path = job.beside("new.img");
    image(&job, &["import", &to, text(&path)]).go().exits(0);
    greets(&job, &path);
    let other = format!("docker://{}/group/app:v2", registry.address);
    let none = job.beside("none.img");
    image(&job, &["import", &other, text(&none)])
        .go()
        .exits(125)
        .says(&["there is no", "hint: check the name"]);
    // A layer that is not what its digest stands for.
    let find = "find \"$1\" -name data -size +100k | head -n 1";
    let blob = tool("sh", &["-c", find, "sh", text(&registry.data)]);
    let blob = Path::new(blob.trim());
    let mut bytes = fs::read(blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(blob, bytes).unwrap();
    let damaged = job.beside("damaged.img");
    image(&job, &["import", &to, text(&damaged)])
        .go()
        .exits(125)
        .says(&["cannot import"]);
    assert!(!damaged.exists());
}
