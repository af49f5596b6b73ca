//! Machines of a cloud that is on this machine: moto, which `setup/moto.sh` installs.

#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apppot_cloud::{Config, Ec2, NewInstance};

struct Moto(Child, u16);

impl Moto {
    /// `None`, which in CI is a failure, without `APPPOT_TEST_MOTO`.
    fn start() -> Option<Self> {
        let Some(programs) = std::env::var_os("APPPOT_TEST_MOTO") else {
            assert!(
                std::env::var_os("CI").is_none(),
                "APPPOT_TEST_MOTO is not set"
            );
            eprintln!("skipped: APPPOT_TEST_MOTO is not set (setup/moto.sh prints it)");
            return None;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut command = Command::new(Path::new(&programs).join("moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let moto = Moto(command.spawn().unwrap(), port);
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "moto does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(moto)
    }

    fn config(&self) -> Config {
        let port = self.1;
        let environment = move |name: &str| {
            Some(match name {
                "AWS_ENDPOINT_URL" => format!("http://127.0.0.1:{port}"),
                "AWS_REGION" => String::from("eu-north-1"),
                "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => String::from("test"),
                _ => return None,
            })
        };
        Config::load(&environment).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_machine_is_started_found_by_its_tag_and_ended() {
    let Some(moto) = Moto::start() else { return };
    let ec2 = Ec2::new(&moto.config()).unwrap();
    let new = NewInstance {
        image: "ami-03cf127a",
        kind: "t3.small",
        user_data: b"#apppot/1\n",
        token: "job-1",
        tags: &[("apppot:job", "job-1"), ("Name", "a & b")],
        subnet: None,
        groups: &[],
        key: None,
        is_spot: false,
    };
    let started = ec2.run(&new).unwrap();
    assert!(started.id.starts_with("i-"), "{started:?}");
    let found = ec2.instances("tag:apppot:job", "job-1").unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&found[0].id, &found[0].state[..]),
        (&started.id, "running")
    );
    let name = (String::from("Name"), String::from("a & b"));
    assert!(found[0].tags.contains(&name), "{found:?}");
    assert!(!ec2.console(&started.id).unwrap().is_empty());
    ec2.terminate(&[&started.id]).unwrap();
    ec2.terminate(&[&started.id]).unwrap();
    let found = ec2.instances("instance-id", &started.id).unwrap();
    assert_eq!(found[0].state, "terminated");
    assert_eq!(ec2.instances("tag:apppot:job", "job-2").unwrap(), []);
    let error = ec2.terminate(&["i-0123456789abcdef0"]).unwrap_err();
    assert_eq!(error.code(), Some("InvalidInstanceID.NotFound"));
}
