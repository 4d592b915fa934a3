//! What is in an output held against inputs that fit and that do not.

use super::*;

fn line(index: u64, text: &str) -> Line {
    Line {
        file: "f".into(),
        number: index + 1,
        index,
        text: text.into(),
    }
}

fn record(index: u64, text: &str) -> String {
    let line = index + 1;
    format!(
        "{{\"file\":\"f\",\"line\":{line},\"index\":{index},\"text\":{text:?},\"embedding\":[0.5,{index}],\"truncated\":false}}\n"
    )
}

fn sieve(contents: &str, want: Want) -> (tempfile::NamedTempFile, Sieve) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();
    let kept = Kept::open(file.path()).unwrap();
    (file, Sieve::new(kept, want))
}

/// What becomes of the lines `t0`, `t1`, … in one word each.
fn sift(sieve: &mut Sieve, lines: u64) -> Vec<String> {
    let word = |index| match sieve.sift(&line(index, &format!("t{index}"))) {
        Sifted::New => "new".to_owned(),
        Sifted::Seam(seam) => format!("seam {} {} {}", seam.kept, seam.gaps, seam.next),
        Sifted::Kept => "kept".to_owned(),
        Sifted::End => "end".to_owned(),
        Sifted::Refused(why) => why,
    };
    (0..lines).map(word).collect()
}

/// Goal: what is there is left out, a gap is counted, and half a record at the end counts as nothing.
#[test]
fn the_seam_is_behind_the_last_whole_record() {
    let whole = [record(0, "t0"), record(2, "t2")].concat();
    let (_file, mut sieve) = sieve(&(whole.clone() + &record(3, "t3")[..20]), Want::Behind);
    assert_eq!(sift(&mut sieve, 5), ["kept", "kept", "kept", "seam 2 1 3", "new"]);
    assert!(sieve.end().is_none(), "it was told before");
    assert_eq!((sieve.kept.end, sieve.kept.torn), (whole.len() as u64, true));
}

/// Goal: at the input's end the seam is told, with the first and the last record to hold the model against.
#[test]
fn a_finished_output_has_no_more() {
    let (_file, mut finished) = sieve(&[record(0, "t0"), record(1, "t1")].concat(), Want::Behind);
    assert_eq!(sift(&mut finished, 2), ["kept", "kept"]);
    let Some(Read::Seam(seam)) = finished.end() else {
        panic!("a seam")
    };
    assert!(!seam.more && !seam.torn);
    assert_eq!(
        seam.samples,
        [
            ("t0".to_owned(), vec![0.5, 0.0]),
            ("t1".to_owned(), vec![0.5, 1.0])
        ]
    );
    let (_file, mut empty) = sieve("", Want::Behind);
    let Some(Read::Seam(seam)) = empty.end() else {
        panic!("a seam")
    };
    assert_eq!((seam.kept, seam.next, seam.samples.len()), (0, 0, 0));
}

/// Goal: the gaps, and nothing behind them.
#[test]
fn gaps_are_found() {
    let contents = [record(1, "t1"), record(3, "t3"), record(6, "t6")].concat();
    let (_file, mut sieve) = sieve(&contents, Want::Gaps(4));
    assert_eq!(sift(&mut sieve, 5), ["new", "kept", "new", "kept", "end"]);
    assert!(sieve.end().is_none());
}

/// Goal: an output that is not of this input is refused, by file and line.
#[test]
fn another_input_is_refused() {
    let refusal = |contents: &str, lines: u64| {
        let (file, mut sieve) = sieve(contents, Want::Behind);
        let last = sift(&mut sieve, lines).pop().unwrap_or_default();
        let end = sieve.end().map_or(String::new(), |read| format!("{read:?}"));
        (last + &end).replace(&file.path().display().to_string(), "OUT")
    };
    let text = refusal(&[record(0, "t0"), record(1, "other")].concat(), 2);
    assert!(
        text.contains("OUT:2: f:2 has another text now: the input has changed"),
        "{text}"
    );
    let moved = record(1, "t1").replace("\"line\":2", "\"line\":9");
    let text = refusal(&(record(0, "t0") + &moved), 2);
    assert!(
        text.contains("OUT:2: record 1 is of f:9, and the input has f:2 there"),
        "{text}"
    );
    let text = refusal(&[record(0, "t0"), record(1, "t1")].concat(), 1);
    assert!(
        text.contains("OUT:2: the input ends before this record"),
        "{text}"
    );
    let text = refusal(&[record(1, "t1"), record(1, "t1")].concat(), 2);
    assert!(
        text.contains("OUT:2: record 1 does not stand in the order"),
        "{text}"
    );
    let text = refusal("{\"a\":1}\n", 1);
    assert!(
        text.contains("OUT:1: this is no record of embeddings submit"),
        "{text}"
    );
    for notes in ["my own notes\n", "my own notes", "{\"note\":1}"] {
        let text = refusal(notes, 0);
        assert!(text.contains("this is no record"), "{text}");
    }
}
