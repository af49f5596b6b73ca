use super::*;

/// Every type, with the bytes that stand on the wire for it.
const FRAMES: [(Frame, &[u8]); 17] = [
    (
        Frame::Hello {
            protocol: 1,
            agent: b"0.1",
        },
        b"\x01\0\0\0\x04\x010.1",
    ),
    (Frame::Contract(b""), b"\x02\0\0\0\0"),
    (Frame::Stdin(b"in"), b"\x03\0\0\0\x02in"),
    (Frame::StdinEof, b"\x04\0\0\0\0"),
    (
        Frame::StdinRing(0x0102_0304_0506_0708),
        b"\x05\0\0\0\x08\x01\x02\x03\x04\x05\x06\x07\x08",
    ),
    (Frame::Stdout(b"out"), b"\x06\0\0\0\x03out"),
    (Frame::Stderr(b""), b"\x07\0\0\0\0"),
    (
        Frame::Credit(Stream::Stderr, 65536),
        b"\x08\0\0\0\x05\x02\0\x01\0\0",
    ),
    (
        Frame::Resize {
            rows: 24,
            columns: 0x1234,
        },
        b"\x09\0\0\0\x04\0\x18\x12\x34",
    ),
    (Frame::Signal(15), b"\x0a\0\0\0\x01\x0f"),
    (Frame::Shutdown, b"\x0b\0\0\0\0"),
    (Frame::Received(258), b"\x0f\0\0\0\x04\0\0\x01\x02"),
    (Frame::Close(Stream::Stderr), b"\x0e\0\0\0\x01\x02"),
    (Frame::Files(b"tar"), b"\x10\0\0\0\x03tar"),
    (Frame::FilesRing(1), b"\x11\0\0\0\x08\0\0\0\0\0\0\0\x01"),
    (Frame::Log(b"\xff"), b"\x0c\0\0\0\x01\xff"),
    (Frame::Report(b"#"), b"\x0d\0\0\0\x01#"),
];

fn wire() -> Vec<u8> {
    FRAMES
        .iter()
        .flat_map(|(_, bytes)| bytes.iter().copied())
        .collect()
}

fn raw(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Feeds `bytes` in pieces and asserts that exactly `FRAMES` come out.
fn expect_all(pieces: &mut dyn Iterator<Item = &[u8]>) {
    let mut decoder = Decoder::default();
    let mut expected = FRAMES.iter().map(|(frame, _)| *frame);
    for piece in pieces {
        decoder.feed(piece);
        while let Some(frame) = decoder.next().unwrap() {
            assert_eq!(Some(frame), expected.next());
        }
    }
    assert_eq!(expected.next(), None);
}

#[test]
fn the_bytes_on_the_wire_are_fixed() {
    for (frame, bytes) in FRAMES {
        assert_eq!(frame.to_vec(), bytes, "{frame:?}");
    }
    for (stream, number) in [
        (Stream::Stdin, 0),
        (Stream::Stdout, 1),
        (Stream::Stderr, 2),
        (Stream::Files, 3),
    ] {
        assert_eq!(Frame::Credit(stream, 0).to_vec()[HEADER], number);
    }
}

#[test]
fn frames_come_out_however_they_are_cut() {
    let wire = wire();
    for size in 1..=wire.len() {
        expect_all(&mut wire.chunks(size));
    }
}

#[test]
fn a_frame_that_is_cut_off_never_comes() {
    for (frame, bytes) in FRAMES {
        for end in 0..bytes.len() {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes[..end]);
            assert_eq!(decoder.next(), Ok(None), "{frame:?} to {end}");
            assert_eq!(decoder.next(), Ok(None), "{frame:?} to {end}");
        }
    }
}

#[test]
fn the_longest_payload_passes_and_a_longer_one_does_not() {
    let payload = vec![7; MAX_PAYLOAD];
    let mut decoder = Decoder::default();
    decoder.feed(&Frame::Stdout(&payload).to_vec());
    assert_eq!(decoder.next(), Ok(Some(Frame::Stdout(&payload))));
    for length in [MAX_PAYLOAD as u32 + 1, u32::MAX] {
        let mut decoder = Decoder::default();
        let mut bytes = vec![6];
        bytes.extend(length.to_be_bytes());
        decoder.feed(&bytes);
        // The header is enough: nothing of the payload is waited for.
        assert_eq!(decoder.next(), Err(LinkError::TooLong { length }));
    }
}

#[test]
#[should_panic(expected = "frame of 65537 bytes")]
fn a_payload_that_is_too_long_is_not_written() {
    let _ = Frame::Stdout(&vec![0; MAX_PAYLOAD + 1]).to_vec();
}

#[test]
fn a_long_log_is_cut_off() {
    let frame = Frame::Log(&vec![b'x'; MAX_PAYLOAD + 1]).to_vec();
    assert_eq!(frame.len(), HEADER + MAX_PAYLOAD);
}

#[test]
fn unknown_types_are_errors() {
    for kind in [0, 18, 255] {
        let mut decoder = Decoder::default();
        decoder.feed(&raw(kind, b"x"));
        assert_eq!(decoder.next(), Err(LinkError::UnknownType { kind }));
    }
}

#[test]
fn payloads_of_another_shape_are_errors() {
    for (kind, payload) in [
        (1, &b""[..]),
        (4, b"x"),
        (5, b""),
        (5, b"1234567"),
        (5, b"123456789"),
        (8, b""),
        (8, b"\0\0\0\0"),
        (8, b"\0\0\0\0\0\0"),
        (8, b"\x04\0\0\0\0"),
        (9, b"\0\0\0"),
        (9, b"\0\0\0\0\0"),
        (10, b""),
        (10, b"\0\0"),
        (11, b"x"),
        (17, b"1234567"),
    ] {
        let mut decoder = Decoder::default();
        decoder.feed(&raw(kind, payload));
        assert_eq!(
            decoder.next(),
            Err(LinkError::Malformed { kind }),
            "{kind} {payload:?}"
        );
    }
}

#[test]
fn after_an_error_there_is_nothing_but_the_error() {
    for bad in [raw(99, b""), raw(10, b""), vec![6, 255, 0, 0, 0]] {
        let mut decoder = Decoder::default();
        decoder.feed(&[Frame::StdinEof.to_vec(), bad, Frame::Shutdown.to_vec()].concat());
        assert_eq!(decoder.next(), Ok(Some(Frame::StdinEof)));
        let error = decoder.next().unwrap_err();
        for _ in 0..1000 {
            decoder.feed(&[0; 4096]);
            assert_eq!(decoder.next(), Err(error));
        }
        assert!(
            decoder.buffer.is_empty(),
            "{} bytes kept",
            decoder.buffer.len()
        );
    }
}

#[test]
fn the_buffer_stays_within_a_frame_and_a_read() {
    const READ: usize = 10_000;
    let frame = Frame::Stdout(&vec![1; MAX_PAYLOAD]).to_vec();
    let stream = frame.repeat(20);
    let mut decoder = Decoder::default();
    let mut frames = 0;
    for piece in stream.chunks(READ) {
        decoder.feed(piece);
        assert!(decoder.buffer.len() < frame.len() + READ);
        while decoder.next().unwrap().is_some() {
            frames += 1;
        }
    }
    assert_eq!(frames, 20);
}

#[test]
fn errors_say_what_came() {
    for (error, text) in [
        (
            LinkError::TooLong { length: 65537 },
            "frame of 65537 bytes on the link, 65536 is the most",
        ),
        (
            LinkError::UnknownType { kind: 99 },
            "unknown frame type 99 on the link",
        ),
        (
            LinkError::Malformed { kind: 8 },
            "malformed frame of type 8 on the link",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
