//! The metadata service of a cloud as strict as EC2's (IMDSv2), for one machine of QEMU's.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::site;

/// The service, and QEMU's arguments for a machine that has it. For the machine alone: it is at 169.254.169.254 in a
/// network of its own, and on loopback here.
#[derive(Debug)]
pub(crate) struct Metadata {
    args: Vec<String>,
    pub(crate) asked: Arc<AtomicUsize>,
    /// That the machine is taken back.
    notice: Arc<Mutex<Option<String>>>,
}

impl Metadata {
    /// Whatever is asked in the time `late` from the first question on is answered by an error.
    pub(crate) fn start(late: Duration, user_data: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, user_data) = (Arc::clone(&asked), user_data.to_owned());
        let notice = Arc::new(Mutex::new(None));
        let given = Arc::clone(&notice);
        // It ends with the test process.
        std::thread::spawn(move || {
            let mut first = None;
            for stream in listener.incoming().flatten() {
                let first = *first.get_or_insert_with(Instant::now);
                let notice = given.lock().unwrap().clone();
                count.fetch_add(1, Relaxed);
                answer(
                    stream,
                    first.elapsed() < late,
                    &user_data,
                    notice.as_deref(),
                );
            }
        });
        let net = format!(
            "user,id=n,net=169.254.0.0/16,restrict=on,guestfwd=tcp:169.254.169.254:80-cmd:{}",
            forward(&format!("127.0.0.1:{port}"))
        );
        let args = [
            "-smbios",
            "type=1,manufacturer=Amazon EC2",
            "-netdev",
            &net,
            "-device",
            "virtio-net-pci,netdev=n",
        ];
        let args = args.map(str::to_owned).into();
        Metadata {
            args,
            asked,
            notice,
        }
    }

    /// What is at this address, at 169.254.169.253 for the machine.
    pub(crate) fn with_store(mut self, address: &str) -> Self {
        let forward = forward(address);
        for arg in self.args.iter_mut().filter(|arg| arg.starts_with("user,")) {
            arg.push_str(&format!(",guestfwd=tcp:169.254.169.253:80-cmd:{forward}"));
        }
        self
    }

    /// Tells the machine that it is taken back.
    pub(crate) fn take_back(&self, notice: &str) {
        *self.notice.lock().unwrap() = Some(notice.to_owned());
    }

    pub(crate) fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }
}

/// A command that connects its standard streams with this address.
fn forward(address: &str) -> String {
    static SCRIPT: OnceLock<PathBuf> = OnceLock::new();
    let script: &Path = SCRIPT.get_or_init(|| {
        let path = site().unwrap().stage.join("forward");
        let text = "exec 3<>/dev/tcp/$1 4<&0\ncat <&4 >&3 &\ncat <&3\nkill $!\n";
        std::fs::write(&path, text).unwrap();
        path
    });
    let place = address.replace(':', "/");
    format!("/bin/bash {} {place}", script.display())
}

fn answer(mut stream: TcpStream, is_late: bool, user_data: &str, notice: Option<&str>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => request.push(byte[0]),
            _ => return,
        }
    }
    let request = String::from_utf8(request).unwrap().to_lowercase();
    let has = |line: &str| request.contains(&format!("\r\n{line}\r\n"));
    let line = request.split(" http/").next().unwrap();
    let (status, body) = match line {
        _ if is_late || !has("host: 169.254.169.254") => (503, ""),
        "put /latest/api/token"
            if request.contains("\r\nx-aws-ec2-metadata-token-ttl-seconds: ") =>
        {
            (200, "to+ken==")
        }
        "get /latest/meta-data/spot/instance-action"
            if has("x-aws-ec2-metadata-token: to+ken==") =>
        {
            notice.map_or((404, ""), |notice| (200, notice))
        }
        "get /latest/user-data" if has("x-aws-ec2-metadata-token: to+ken==") => (200, user_data),
        _ => (401, ""),
    };
    let len = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}
