use super::*;

fn error(tokens: &str) -> String {
    let lines = tokens.replace(' ', "\n");
    let text = format!("#apppot-report/1\n{lines}\n");
    Report::decode(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_report_is_a_document() {
    let report = Report {
        outcome: Outcome::Failed {
            step: "mounting the root".into(),
            reason: "no such device".into(),
        },
        usage: Usage {
            elapsed: Duration::from_micros(1_500_000),
            user: Duration::from_micros(2),
            system: Duration::from_micros(3),
            max_rss_kib: 4,
        },
        notes: vec!["a b".into()],
    };
    let text = report.encode();
    assert_eq!(
        std::str::from_utf8(&text).unwrap(),
        "#apppot-report/1\napppot.outcome=failed\napppot.step=mounting%20the%20root\n\
         apppot.reason=no%20such%20device\napppot.elapsed-us=1500000\napppot.user-us=2\n\
         apppot.system-us=3\napppot.max-rss-kib=4\n\
         apppot.note=a%20b\n"
    );
    assert_eq!(Report::decode(&text), Ok(report));
}

#[test]
fn every_outcome_round_trips() {
    let reason = || String::from("caf\u{e9}: no\nsuch file");
    for outcome in [
        Outcome::Exited { status: 0 },
        Outcome::Exited { status: 255 },
        Outcome::Signalled { signal: 1 },
        Outcome::Signalled { signal: 127 },
        Outcome::TimedOut,
        Outcome::NotFound { reason: reason() },
        Outcome::NotExecutable { reason: reason() },
        Outcome::Failed {
            step: String::new(),
            reason: reason(),
        },
    ] {
        let report = Report::of(outcome);
        assert_eq!(Report::decode(&report.encode()), Ok(report));
    }
}

#[test]
fn usage_may_be_left_out() {
    let text = b"#apppot-report/1\napppot.outcome=timed-out";
    assert_eq!(Report::decode(text), Ok(Report::of(Outcome::TimedOut)));
}

#[test]
fn a_report_always_fits_into_a_frame() {
    let text = "\u{e9}".repeat(1 << 20);
    let mut report = Report::of(Outcome::Failed {
        step: text.clone(),
        reason: format!("x{text}"),
    });
    report.usage.elapsed = Duration::MAX;
    report.usage.max_rss_kib = u64::MAX;
    report.notes = vec![text.clone(); 20];
    let encoded = report.encode();
    assert!(encoded.len() <= link::MAX_PAYLOAD, "{}", encoded.len());
    let read = Report::decode(&encoded).unwrap();
    assert_eq!(read.usage.elapsed, Duration::from_micros(u64::MAX));
    assert_eq!(read.notes.len(), MAX_NOTES);
    assert!(read.notes.iter().all(|note| note.len() == MAX_NOTE));
    let Outcome::Failed { step, reason } = read.outcome else {
        panic!("another outcome");
    };
    assert!(text.starts_with(&step) && step.len() == MAX_TEXT);
    assert!(reason.len() == MAX_TEXT - 1, "cut inside a character");
}

#[test]
fn mistakes_are_named() {
    for (tokens, named) in [
        ("", "'apppot.outcome' is missing"),
        ("apppot.status=1", "'apppot.outcome' is missing"),
        (
            "apppot.outcome=won",
            "'apppot.outcome=won' is an unknown outcome",
        ),
        (
            "apppot.outcome=exited",
            "'apppot.outcome=exited' needs apppot.status",
        ),
        ("apppot.outcome=signalled", "needs apppot.signal"),
        ("apppot.outcome=not-found", "needs apppot.reason"),
        ("apppot.outcome=not-executable", "needs apppot.reason"),
        ("apppot.outcome=failed apppot.reason=x", "needs apppot.step"),
        ("apppot.outcome=failed apppot.step=x", "needs apppot.reason"),
        ("apppot.status=256", "'apppot.status=256' is no number"),
        ("apppot.status=+1", "'apppot.status=+1' is no number"),
        ("apppot.signal=0", "'apppot.signal=0' is no signal"),
        ("apppot.signal=128", "'apppot.signal=128' is no signal"),
        (
            "apppot.status=1 apppot.status=1",
            "'apppot.status=1' repeats a key",
        ),
        (
            "apppot.elapsed-us=1 apppot.elapsed-us=2",
            "'apppot.elapsed-us=2' repeats",
        ),
        ("apppot.max-rss-kib=1 apppot.max-rss-kib=1", "repeats a key"),
        (&"apppot.note=x ".repeat(17), "is one note too many"),
        (
            "apppot.outcome=exited apppot.signal=9",
            "'apppot.outcome=exited' needs apppot.status",
        ),
        (
            "apppot.outcome=exited apppot.status=1 apppot.signal=9",
            "'apppot.signal' does not go with the outcome",
        ),
        (
            "apppot.outcome=timed-out apppot.reason=x",
            "'apppot.reason' does not go with the outcome",
        ),
        ("apppot.reason=%", "'apppot.reason=%' has a byte"),
        ("apppot.arg=x", "'apppot.arg=x' has no place in a report"),
        ("TERM=x", "'TERM=x' has no place in a report"),
        ("#comment", "'#comment' has no place in a report"),
    ] {
        let error = error(tokens);
        assert!(error.starts_with("report token '"), "{error}");
        assert!(error.contains(named), "{tokens}: {error}");
    }
}

#[test]
fn the_first_line_is_examined() {
    for (text, named) in [
        ("", "'' is not the first line"),
        ("#apppot/1\n", "'#apppot/1' is not the first line"),
        (
            "#apppot-report/2\napppot.new=1\n",
            "'#apppot-report/2' is another version",
        ),
        ("#apppot-report/1\r\n", "another version"),
    ] {
        let error = Report::decode(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    let mut long = b"#apppot-report/1\n".to_vec();
    long.resize(link::MAX_PAYLOAD + 1, b'\n');
    let error = Report::decode(&long).unwrap_err().to_string();
    assert!(error.contains("65537 bytes, 65536 is the most"), "{error}");
}
