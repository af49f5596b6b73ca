//! Machines of a cloud that is on this machine: moto, which `setup/moto.sh` installs.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apppot_cloud::{Config, Ec2, NewInstance, S3};

struct Moto(Child, u16);

impl Moto {
    /// `None`, which in CI is a failure, without `APPPOT_TEST_MOTO`.
    fn start() -> Option<Self> {
        Self::with(&[])
    }

    /// With variables of its environment.
    fn with(variables: &[(&str, &str)]) -> Option<Self> {
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
        command.envs(variables.iter().copied());
        let moto = Moto(command.spawn().unwrap(), port);
        let end = Instant::now() + Duration::from_secs(60);
        // A connection to nobody's port may become one to itself.
        let answers = || {
            let stream = TcpStream::connect(("127.0.0.1", port));
            stream.is_ok_and(|stream| stream.local_addr().unwrap().port() != port)
        };
        while !answers() {
            assert!(Instant::now() < end, "moto does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(moto)
    }

    fn config(&self) -> Config {
        self.config_of("test", "test")
    }

    /// With this access key and its secret.
    fn config_of(&self, id: &str, secret: &str) -> Config {
        let port = self.1;
        let environment = move |name: &str| {
            Some(match name {
                "AWS_ENDPOINT_URL" => format!("http://127.0.0.1:{port}"),
                "AWS_REGION" => String::from("eu-north-1"),
                "AWS_ACCESS_KEY_ID" => id.to_owned(),
                "AWS_SECRET_ACCESS_KEY" => secret.to_owned(),
                _ => return None,
            })
        };
        Config::load(&environment).unwrap()
    }
}

/// Makes a request by a URL, as somebody without a key; what comes back.
fn http(method: &str, url: &str, body: &str) -> String {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let len = body.len();
    let head = format!("{method} /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n");
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const NEW: NewInstance<'_> = NewInstance {
    image: "ami-03cf127a",
    kind: "t3.small",
    user_data: b"#apppot/1\n",
    token: "job-1",
    tags: &[("apppot:job", "job-1"), ("Name", "a & b")],
    subnet: None,
    groups: &[],
    key: None,
    disk: Some(20),
    is_spot: false,
};

#[test]
fn a_machine_is_started_found_by_its_tag_and_ended() {
    let Some(moto) = Moto::start() else { return };
    let ec2 = Ec2::new(&moto.config()).unwrap();
    let started = ec2.run(&NEW).unwrap();
    assert!(started.id.starts_with("i-"), "{started:?}");
    let found = ec2.instances("tag:apppot:job", "job-1").unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&found[0].id, &found[0].state[..]),
        (&started.id, "running")
    );
    assert_eq!(found[0].tag("Name"), Some("a & b"));
    assert!(!ec2.console(&started.id).unwrap().is_empty());
    ec2.terminate(&[&started.id]).unwrap();
    ec2.terminate(&[&started.id]).unwrap();
    let found = ec2.instances("instance-id", &started.id).unwrap();
    assert!(found[0].has_ended());
    let (code, _) = found[0].reason.clone().unwrap();
    assert_eq!(code, "Client.UserInitiatedShutdown");
    assert_eq!(ec2.instances("tag:apppot:job", "job-2").unwrap(), []);
    let error = ec2.terminate(&["i-0123456789abcdef0"]).unwrap_err();
    assert_eq!(error.code(), Some("InvalidInstanceID.NotFound"));
}

/// Where every signature is examined.
#[test]
fn a_strict_cloud_takes_our_signatures_and_no_others() {
    let Some(moto) = Moto::with(&[("INITIAL_NO_AUTH_ACTION_COUNT", "3")]) else {
        return;
    };
    let programs = std::env::var_os("APPPOT_TEST_MOTO").unwrap();
    let mut python = Command::new(Path::new(&programs).join("python3"));
    python.args(["-c", include_str!("../../tests/e2e/user.py")]);
    python.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", moto.1));
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        python.env(name, "test");
    }
    let output = python.env("AWS_DEFAULT_REGION", "eu-north-1").output();
    let key: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let (id, secret) = (key["id"].as_str().unwrap(), key["secret"].as_str().unwrap());
    let ec2 = Ec2::new(&moto.config_of(id, secret)).unwrap();
    let started = ec2.run(&NEW).unwrap();
    ec2.instances("tag:apppot:job", "job-1").unwrap();
    ec2.console(&started.id).unwrap();
    ec2.terminate(&[&started.id]).unwrap();
    let other = Ec2::new(&moto.config_of(id, "hidden")).unwrap();
    let error = other.run(&NEW).unwrap_err();
    assert_eq!(error.code(), Some("AuthFailure"));
    assert!(!format!("{error} {error:?}").contains("hidden"));
}

#[test]
fn objects_are_written_read_listed_and_deleted() {
    // Lists in pages of two.
    let Some(moto) = Moto::with(&[("MOTO_S3_DEFAULT_MAX_KEYS", "2")]) else {
        return;
    };
    let s3 = S3::new(&moto.config(), "bucket-1").unwrap();
    let error = s3.put("a/0", b"").unwrap_err();
    assert_eq!(error.code(), Some("NoSuchBucket"));
    assert!(error.hint().unwrap().contains("aws s3 mb"));
    let bucket = format!("http://127.0.0.1:{}/bucket-1", moto.1);
    assert!(http("PUT", &bucket, "").contains(" 200 "));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&b"0123456789".repeat(100_000)).unwrap();
    s3.put_part("a/0", &file, 5, 999_990, &|_| true).unwrap();
    let stopped = s3.put_part("a/9", &file, 0, 10, &|_| false).unwrap_err();
    assert!(matches!(stopped, apppot_cloud::Error::Stopped));
    for number in 1..5 {
        s3.put(&format!("a/{number}"), &vec![b'x'; number]).unwrap();
    }
    s3.put("b/0", b"other").unwrap();
    let sizes: Vec<u64> = s3.list("a/").unwrap().iter().map(|one| one.size).collect();
    assert_eq!(sizes, [999_990, 1, 2, 3, 4]);
    assert_eq!(s3.get("a/0", 0, 3).unwrap().unwrap(), b"567");
    assert_eq!(s3.get("a/0", 999_988, 99).unwrap().unwrap(), b"34");
    assert_eq!(s3.get("a/0", 999_990, 1).unwrap(), None);
    assert_eq!(s3.get("a/7", 0, 1).unwrap(), None);
    s3.delete("a/0").unwrap();
    s3.delete("a/0").unwrap();
    assert_eq!(s3.get("a/0", 0, 1).unwrap(), None);
    let minute = Duration::from_secs(60);
    let put = http("PUT", &s3.url_to_put("c/0", minute), "by a URL");
    assert!(put.contains(" 200 "), "{put}");
    assert_eq!(s3.get("c/0", 0, 99).unwrap().unwrap(), b"by a URL");
    let got = http("GET", &s3.url_to_get("c/0", minute), "");
    assert!(got.ends_with("by a URL"), "{got}");
}
