//! The metadata service of a cloud: HTTP on a link-local address, asked for the machine's user-data.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::interface::{self, Way};

/// Which cloud an image's machines are in, where their firmware does not say so: one word.
const CONFIGURED: &str = "etc/apppot/metadata";
const USER_DATA: &str = "GET /latest/user-data";

/// How long it is asked often, and how long not to answer is nothing to speak of.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause between two questions after that.
const LATER: Duration = Duration::from_secs(30);
/// How long one connection, and one read, may take.
const AT_ONCE: Duration = Duration::from_secs(3);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest answer that is read, bytes; user-data is 16 KiB at most with EC2, 64 KiB with OpenStack.
const LONGEST: u64 = 256 << 10;

/// A cloud that has such a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cloud {
    /// EC2, and those that say they are. Version 2: each question comes with a token.
    Ec2,
    /// Version 1, for which anybody in the machine who can make it send a request gets an answer: only for images
    /// that say so.
    Ec2WithoutToken,
    /// OpenStack has an interface of its own, without tokens.
    OpenStack,
}

/// The cloud that the image names, or else the machine's firmware. `root` has `sys`.
pub(crate) fn cloud(root: &Path) -> Option<Cloud> {
    let configured = std::fs::read_to_string(root.join(CONFIGURED)).unwrap_or_default();
    match configured.trim() {
        "" => {}
        "ec2" => return Some(Cloud::Ec2),
        "ec2-without-token" => return Some(Cloud::Ec2WithoutToken),
        "openstack" => return Some(Cloud::OpenStack),
        "none" => return None,
        other => eprintln!("apppot-init: /{CONFIGURED}: there is no cloud '{other}'"),
    }
    let says = |name: &str, words: &[&str]| {
        let path = root.join("sys/class/dmi/id").join(name);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        words.iter().any(|word| text.starts_with(word))
    };
    match () {
        () if says("sys_vendor", &["Amazon EC2"]) => Some(Cloud::Ec2),
        // Of machines that Xen runs.
        () if says("bios_version", &["4.2.amazon", "4.11.amazon"]) => Some(Cloud::Ec2),
        () if says("product_name", &["OpenStack Nova", "OpenStack Compute"]) => {
            Some(Cloud::OpenStack)
        }
        () if says(
            "chassis_asset_tag",
            &["OpenStack Nova", "OpenStack Compute"],
        ) =>
        {
            Some(Cloud::OpenStack)
        }
        () => None,
    }
}

impl Cloud {
    /// Where its machines find the service.
    pub(crate) fn addresses(self) -> Vec<SocketAddr> {
        let ipv4 = (Ipv4Addr::new(169, 254, 169, 254), 80).into();
        let ipv6 = (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 80).into();
        match self {
            Cloud::Ec2 => vec![ipv4, ipv6],
            Cloud::Ec2WithoutToken | Cloud::OpenStack => vec![ipv4],
        }
    }
}

/// The user-data; `None` when there is none. It is asked for until there is an answer: nobody else knows whether
/// this machine has a job, which would never begin, and never end.
pub(crate) fn user_data(root: &Path, cloud: Cloud) -> Option<Vec<u8>> {
    let mut patience = PATIENCE;
    loop {
        let ways = interface::ways(root, &cloud.addresses());
        match ask_for(cloud, &ways, patience) {
            Ok(answer) => return answer,
            Err(error) if !patience.is_zero() => {
                eprintln!("apppot-init: the cloud's metadata cannot be had yet: {error}");
            }
            Err(_) => {}
        }
        patience = Duration::ZERO;
        std::thread::sleep(LATER);
    }
}

/// Asks in every way in turn until one answers: for half of the time by the first interface alone, for on the others
/// it may be somebody else.
///
/// # Errors
/// None of them has within `patience`.
fn ask_for(cloud: Cloud, ways: &[Way], patience: Duration) -> io::Result<Option<Vec<u8>>> {
    let begun = Instant::now();
    let end = begun + patience;
    loop {
        let mut last = io::Error::other("there is no address");
        let takes_all = begun.elapsed() >= patience / 2;
        let tried = ways
            .iter()
            .filter(|way| takes_all || way.is_beside(&ways[0]));
        for way in tried {
            match ask(cloud, way) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = io::Error::new(error.kind(), format!("{way}: {error}")),
            }
        }
        if Instant::now() >= end {
            return Err(last);
        }
        std::thread::sleep(PAUSE);
    }
}

fn ask(cloud: Cloud, way: &Way) -> io::Result<Option<Vec<u8>>> {
    let answer = match cloud {
        Cloud::OpenStack => request(way, "GET /openstack/latest/user_data", "")?,
        Cloud::Ec2WithoutToken => request(way, USER_DATA, "")?,
        Cloud::Ec2 => {
            let lifetime = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
            let token = request(way, "PUT /latest/api/token", lifetime)?;
            let token = match token {
                (200, token) => String::from_utf8(token).ok().filter(|t| is_token(t)),
                // The service is switched off.
                (403, _) => return Ok(None),
                (status, _) => return Err(refused(status)),
            };
            let token = token.ok_or_else(|| io::Error::other("the token is none"))?;
            let token = format!("X-aws-ec2-metadata-token: {token}\r\n");
            request(way, USER_DATA, &token)?
        }
    };
    match answer {
        (200, text) => Ok(Some(text)),
        (404, _) => Ok(None),
        (status, _) => Err(refused(status)),
    }
}

fn refused(status: u16) -> io::Error {
    io::Error::other(format!("HTTP status {status}"))
}

/// It becomes a header.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// One request (RFC 9112): the status and the body.
fn request(way: &Way, line: &str, headers: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = way.connect(AT_ONCE)?;
    stream.set_read_timeout(Some(AT_ONCE))?;
    stream.set_write_timeout(Some(AT_ONCE))?;
    let host = way.address.ip();
    let host = match host.is_ipv6() {
        true => format!("[{host}]"),
        false => host.to_string(),
    };
    let text = format!(
        "{line} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    let mut reader = stream.take(LONGEST);
    // What has come whole is enough, should the connection not be closed.
    while body(&answer)?.is_none() {
        let mut buffer = [0; 4096];
        match reader.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => answer.extend_from_slice(&buffer[..len]),
        }
    }
    let malformed = || io::Error::other("the answer is malformed");
    body(&answer)?.ok_or_else(malformed)
}

/// Status and body, once they are there.
fn body(answer: &[u8]) -> io::Result<Option<(u16, Vec<u8>)>> {
    let malformed = || io::Error::other("the answer is malformed");
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| malformed())?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| {
        let rest = line.strip_prefix("HTTP/1.")?;
        rest.get(2..5)?.parse().ok()
    });
    let mut lines = lines.filter_map(|line| line.split_once(':'));
    let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = match length {
        Some((_, value)) => value.trim().parse().map_err(|_| malformed())?,
        None => return Err(io::Error::other("the answer has no length")),
    };
    let body = &answer[end + 4..];
    let status = status.ok_or_else(malformed)?;
    Ok(body.get(..length).map(|body| (status, body.to_vec())))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A service that gives these answers, one a connection, and returns the requests.
    fn service(answers: &[&str]) -> (SocketAddr, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers: Vec<String> = answers.iter().map(|&text| text.to_owned()).collect();
        let thread = std::thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let len = stream.read(&mut request).unwrap();
                requests.push(String::from_utf8_lossy(&request[..len]).into_owned());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            requests
        });
        (address, thread)
    }

    fn ok(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// Asks a service that is on loopback.
    fn user_data(
        cloud: Cloud,
        addresses: &[SocketAddr],
        patience: Duration,
    ) -> io::Result<Option<Vec<u8>>> {
        let root = tempfile::tempdir().unwrap();
        ask_for(cloud, &interface::ways(root.path(), addresses), patience)
    }

    const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";
    const BUSY: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";

    #[test]
    fn ec2_is_asked_with_a_token_until_it_answers() {
        let (token, data) = (ok("tok=="), ok("#apppot/1\n"));
        let (address, served) = service(&["", BUSY, &token, BUSY, &token, &data]);
        let found = user_data(Cloud::Ec2, &[address], Duration::from_secs(60)).unwrap();
        assert_eq!(found.as_deref(), Some(&b"#apppot/1\n"[..]));
        let requests = served.join().unwrap();
        assert!(requests[0].starts_with("PUT /latest/api/token HTTP/1.1\r\nHost: 127.0.0.1\r\n"));
        assert!(requests[2].contains("X-aws-ec2-metadata-token-ttl-seconds: 60\r\n"));
        assert!(requests[5].starts_with("GET /latest/user-data "));
        assert!(requests[5].contains("X-aws-ec2-metadata-token: tok==\r\n"));
    }

    #[test]
    fn a_machine_without_user_data_has_none() {
        let patience = Duration::from_secs(60);
        let (address, _) = service(&[&ok("t"), NOT_FOUND]);
        assert_eq!(user_data(Cloud::Ec2, &[address], patience).unwrap(), None);
        let (address, _) = service(&[FORBIDDEN]);
        assert_eq!(user_data(Cloud::Ec2, &[address], patience).unwrap(), None);
        let (address, served) = service(&[&ok("#!/bin/sh\n")]);
        let found = user_data(Cloud::OpenStack, &[address], patience).unwrap();
        assert_eq!(found.as_deref(), Some(&b"#!/bin/sh\n"[..]));
        assert!(served.join().unwrap()[0].starts_with("GET /openstack/latest/user_data "));
        let (address, served) = service(&[&ok("#!/bin/sh\n")]);
        let found = user_data(Cloud::Ec2WithoutToken, &[address], patience).unwrap();
        assert_eq!(found.as_deref(), Some(&b"#!/bin/sh\n"[..]));
        assert!(served.join().unwrap()[0].starts_with("GET /latest/user-data "));
    }

    #[test]
    fn answers_that_make_no_sense_are_errors() {
        let long = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n{}",
            "x".repeat(300_000)
        );
        for answer in [
            "",
            "garbage\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nno length",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na\r\n",
            &long,
        ] {
            let (address, _) = service(&[answer]);
            let found = user_data(Cloud::Ec2, &[address], Duration::ZERO);
            assert!(found.is_err(), "{answer}");
        }
    }

    #[test]
    fn clouds_are_known_by_their_firmware() {
        let root = tempfile::tempdir().unwrap();
        let id = root.path().join("sys/class/dmi/id");
        assert_eq!(cloud(root.path()), None);
        std::fs::create_dir_all(&id).unwrap();
        for (file, text, found) in [
            ("sys_vendor", "QEMU\n", None),
            ("sys_vendor", "Amazon EC2\n", Some(Cloud::Ec2)),
            ("bios_version", "4.11.amazon\n", Some(Cloud::Ec2)),
            ("product_name", "OpenStack Nova\n", Some(Cloud::OpenStack)),
            (
                "chassis_asset_tag",
                "OpenStack Compute\n",
                Some(Cloud::OpenStack),
            ),
        ] {
            std::fs::write(id.join(file), text).unwrap();
            assert_eq!(cloud(root.path()), found, "{text}");
            std::fs::remove_file(id.join(file)).unwrap();
        }
    }

    #[test]
    fn an_image_knows_better_than_the_firmware() {
        let root = tempfile::tempdir().unwrap();
        let id = root.path().join("sys/class/dmi/id");
        std::fs::create_dir_all(&id).unwrap();
        std::fs::create_dir_all(root.path().join("etc/apppot")).unwrap();
        std::fs::write(id.join("sys_vendor"), "Amazon EC2\n").unwrap();
        for (word, found) in [
            ("ec2-without-token\n", Some(Cloud::Ec2WithoutToken)),
            ("openstack", Some(Cloud::OpenStack)),
            ("none\n", None),
            ("nonsense", Some(Cloud::Ec2)),
            ("", Some(Cloud::Ec2)),
        ] {
            std::fs::write(root.path().join(CONFIGURED), word).unwrap();
            assert_eq!(cloud(root.path()), found, "{word}");
        }
    }
}
