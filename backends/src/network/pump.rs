//! Carries frames between a guest's socket, where each is a packet, and passt's stream, where the
//! frame's length goes before it (4 bytes, big-endian: `net/socket.c` of QEMU has the same).

use std::io::{self, Read, Write};
use std::net::Shutdown;
#[cfg(feature = "libvirt")]
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::socket::{self, MsgFlags};

use super::ethernet;

/// The longest frame that passt sends: an IPv4 packet of 65,520 bytes and its header.
const MAX_FRAME: usize = 65_520 + 14;

/// Bytes of the length before a frame.
const LENGTH: usize = 4;

/// Starts to carry. Both threads end when either side has closed its end.
///
/// # Errors
/// A thread cannot be started, or a descriptor not be copied.
pub(super) fn start(guest: OwnedFd, passt: UnixStream) -> io::Result<()> {
    let guest = Arc::new(guest);
    let (from, to) = (Arc::clone(&guest), passt.try_clone()?);
    thread("guest to network", move || {
        let ended = outwards(&from, &to, ethernet::may_leave);
        close(&from, &to);
        ended
    })?;
    thread("network to guest", move || {
        let ended = inwards(&passt, &guest);
        close(&guest, &passt);
        ended
    })
}

/// Carries between a hypervisor's stream, which says a frame's length before it as passt's does, and the socket that
/// a guest's frames are packets of. Both threads end when either side has closed its end.
///
/// # Errors
/// As [`start`].
#[cfg(feature = "libvirt")]
pub(crate) fn carry(guest: TcpStream, packets: OwnedFd) -> io::Result<()> {
    guest.set_nodelay(true)?;
    let packets = Arc::new(packets);
    let (from, to) = (guest.try_clone()?, Arc::clone(&packets));
    thread("guest's frames out", move || {
        let ended = inwards(&from, &to);
        let _ = socket::shutdown(to.as_raw_fd(), socket::Shutdown::Both);
        ended
    })?;
    thread("guest's frames in", move || {
        // What may leave is decided where it leaves.
        let ended = outwards(&packets, &guest, |_| true);
        let _ = guest.shutdown(Shutdown::Both);
        ended
    })
}

fn thread(name: &str, carry: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let carry = move || {
        // The machine or passt has ended: there is nothing left to carry, and nobody to tell.
        let _ = carry();
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(carry)
        .map(drop)
}

fn close(guest: &OwnedFd, passt: &UnixStream) {
    // Either may be closed already.
    let _ = socket::shutdown(guest.as_raw_fd(), socket::Shutdown::Both);
    let _ = passt.shutdown(Shutdown::Both);
}

/// From packets, which are not trusted, to a stream: those that `may` pass.
fn outwards(guest: &OwnedFd, mut stream: impl Write, may: fn(&[u8]) -> bool) -> io::Result<()> {
    // A byte more than the longest frame: whatever fills it is too long and was cut off.
    let mut buffer = vec![0; LENGTH + MAX_FRAME + 1];
    loop {
        let received = socket::recv(guest.as_raw_fd(), &mut buffer[LENGTH..], MsgFlags::empty());
        let len = match received {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(nix::Error::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if len > MAX_FRAME || !may(&buffer[LENGTH..LENGTH + len]) {
            continue;
        }
        buffer[..LENGTH].copy_from_slice(&length(len));
        stream.write_all(&buffer[..LENGTH + len])?;
    }
}

/// From a stream to packets.
fn inwards(mut stream: impl Read, guest: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; 4 * (LENGTH + MAX_FRAME)];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(()),
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let mut taken = 0;
        while let Some(frame) = first_frame(&buffer[taken..filled])? {
            send(guest, frame)?;
            taken += LENGTH + frame.len();
        }
        buffer.copy_within(taken..filled, 0);
        filled -= taken;
    }
}

fn send(guest: &OwnedFd, frame: &[u8]) -> io::Result<()> {
    loop {
        match socket::send(guest.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The first frame in `bytes`, when it is there as a whole.
///
/// # Errors
/// Its length cannot be.
fn first_frame(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    match u32::from_be_bytes(*length) as usize {
        0 => Err(io::Error::other("an empty frame")),
        len if len > MAX_FRAME => Err(io::Error::other("a frame that is too long")),
        len => Ok(rest.get(..len)),
    }
}

fn length(frame: usize) -> [u8; LENGTH] {
    (frame as u32).to_be_bytes()
}

/// Says `frame` to passt and waits for any answer, which is left unread if it is none of ours.
///
/// # Errors
/// passt has ended.
pub(super) fn ask(mut passt: &UnixStream, frame: &[u8]) -> io::Result<()> {
    passt.write_all(&[&length(frame.len())[..], frame].concat())?;
    let mut answer = [0; LENGTH];
    passt.read_exact(&mut answer)?;
    let mut rest = vec![0; (u32::from_be_bytes(answer) as usize).min(MAX_FRAME)];
    passt.read_exact(&mut rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};

    /// A guest's socket and passt's, with the pump between them.
    fn pumped() -> (OwnedFd, UnixStream) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, guest) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let (near, passt) = UnixStream::pair().unwrap();
        start(ours, near).unwrap();
        (guest, passt)
    }

    fn frame(len: usize) -> Vec<u8> {
        let mut frame = ethernet::arp_request();
        frame.resize(len, 7);
        frame
    }

    #[test]
    fn frames_get_their_length_and_lose_it() {
        let (guest, mut passt) = pumped();
        for len in [42, 1514, MAX_FRAME] {
            let sent = frame(len);
            send(&guest, &sent).unwrap();
            let mut got = vec![0; LENGTH + len];
            passt.read_exact(&mut got).unwrap();
            assert_eq!(got[..LENGTH], length(len));
            assert_eq!(got[LENGTH..], sent);
            // Back, in two pieces.
            passt.write_all(&got[..9]).unwrap();
            passt.write_all(&got[9..]).unwrap();
            let mut back = vec![0; MAX_FRAME];
            let received = socket::recv(guest.as_raw_fd(), &mut back, MsgFlags::empty()).unwrap();
            assert_eq!(back[..received], sent);
        }
    }

    #[cfg(feature = "libvirt")]
    #[test]
    fn a_stream_of_the_guest_s_becomes_packets_and_back() {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut guest = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, packets) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        carry(listener.accept().unwrap().0, ours).unwrap();
        let sent = [&length(600)[..], &frame(600)].concat();
        guest.write_all(&sent[..100]).unwrap();
        guest.write_all(&sent[100..]).unwrap();
        let mut got = vec![0; MAX_FRAME];
        let len = socket::recv(packets.as_raw_fd(), &mut got, MsgFlags::empty()).unwrap();
        assert_eq!(got[..len], frame(600));
        send(&packets, &got[..len]).unwrap();
        let mut back = vec![0; sent.len()];
        guest.read_exact(&mut back).unwrap();
        assert_eq!(back, sent);
        drop(packets);
        assert_eq!(guest.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn what_may_not_leave_is_dropped_and_the_rest_goes_on() {
        let (guest, mut passt) = pumped();
        send(&guest, &[0; 5]).unwrap();
        send(&guest, &frame(MAX_FRAME + 1)).unwrap();
        send(&guest, &frame(60)).unwrap();
        let mut got = [0; LENGTH + 60];
        passt.read_exact(&mut got).unwrap();
        assert_eq!(got[..LENGTH], length(60));
    }

    #[test]
    fn the_end_of_one_side_is_the_end_of_the_other() {
        let (guest, mut passt) = pumped();
        drop(guest);
        assert_eq!(passt.read(&mut [0; 1]).unwrap(), 0);
        let (guest, mut passt) = pumped();
        // A length that no frame has.
        passt.write_all(&[0xff; 8]).unwrap();
        assert_eq!(
            socket::recv(guest.as_raw_fd(), &mut [0; 1], MsgFlags::empty()),
            Ok(0)
        );
    }
}
