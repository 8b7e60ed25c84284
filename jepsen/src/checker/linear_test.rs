use super::*;
use crate::history::Phase;
use crate::seed::Seeded;

/// `process begin..end effect`, one a line; `end` `?`: unknown; effects `r 1`, `r -`, `w 1`, `c - 1`, `c 1 2`.
fn history(text: &str) -> Vec<Operation> {
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let process = words[0].parse().unwrap();
        let (begin, end) = words[1].split_once("..").unwrap();
        let value = |word: &str| (word != "-").then(|| word.parse().unwrap());
        let (function, seen) = match words[2] {
            "r" => (Function::Read, value(words[3])),
            "w" => (Function::Write(value(words[3]).unwrap()), None),
            _ => (Function::Cas(value(words[3]), value(words[4]).unwrap()), None),
        };
        let at = |phase, time: &str| Operation {
            process,
            key: 1,
            function: function.clone(),
            phase,
            time: Duration::from_millis(time.parse().unwrap()),
        };
        lines.push(at(Phase::Invoke, begin));
        if end != "?" {
            lines.push(at(
                Phase::Ok {
                    value: seen,
                    revision: 0,
                },
                end,
            ));
        }
    }
    lines.sort_by_key(|line| line.time);
    lines
}

fn good(text: &str) {
    let verdict = check(&history(text));
    assert!(verdict.is_good(), "{verdict:?}");
}

fn bad(text: &str) -> String {
    let verdict = check(&history(text));
    assert_eq!(verdict.findings.len(), 1, "{verdict:?}");
    verdict.findings[0].what.clone()
}

#[test]
fn known_good_histories_pass() {
    good("1 0..1 r -");
    good("1 0..10 w 1\n2 2..12 r -\n3 3..11 r 1");
    // Concurrent writes, and reads that order them.
    good("1 0..10 w 1\n2 0..10 w 2\n3 11..12 r 1\n3 13..14 r 1");
    good("1 0..1 c - 1\n2 2..3 c 1 2\n1 4..5 r 2");
    // An unknown write that took effect late, or never.
    good("1 0..? w 1\n2 1..2 w 2\n3 3..4 r 2\n3 50..51 r 1");
    good("1 0..? w 1\n2 1..2 w 2\n3 3..4 r 2\n3 50..51 r 2");
    // An unknown cas that must have happened between two others.
    good("1 0..1 w 1\n2 0..? c 1 2\n3 5..6 c 2 3\n4 7..8 r 3");
}

#[test]
fn known_bad_histories_are_caught() {
    // A stale read.
    let said = bad("1 0..1 w 1\n1 2..3 w 2\n2 4..5 r 1");
    assert!(said.contains("read 1"), "{said}");
    // A lost write.
    bad("1 0..1 w 1\n2 2..3 r -");
    // A read that goes back.
    bad("1 0..10 w 1\n2 0..4 r 1\n3 5..6 r -");
    // Two conditional writes from one value.
    bad("1 0..1 w 1\n2 2..5 c 1 2\n3 2..5 c 1 3");
    // A value that nobody wrote.
    bad("1 0..1 w 1\n2 2..3 r 9");
    // An unknown write takes effect once, not twice.
    bad("1 0..? w 1\n2 1..2 w 2\n3 3..4 r 1\n2 5..6 w 3\n3 7..8 r 1");
    // Two readers that disagree on the order of two writes.
    bad("1 0..10 w 1\n2 0..10 w 2\n3 11..12 r 1\n4 13..14 r 2");
}

/// Random operations that really take effect one after the other, at a moment between their begin and end.
fn simulated(seed: u64, operations: u64, unknown: f64) -> Vec<Operation> {
    let mut random = Seeded::new(seed);
    let mut value = None;
    let mut lines = Vec::new();
    for number in 0..operations {
        let effect_at = 100 + number * 10;
        let begin = effect_at - random.below(60);
        let end = effect_at + random.below(60);
        let function = match random.below(3) {
            0 => Function::Read,
            1 => Function::Write(number + 1),
            _ => Function::Cas(value, number + 1),
        };
        let seen = if function == Function::Read { value } else { None };
        let lost = random.chance(unknown);
        let applied = !lost || random.chance(0.5);
        if applied && function != Function::Read {
            value = Some(number + 1);
        }
        let at = |phase, time| Operation {
            process: number,
            key: 1,
            function: function.clone(),
            phase,
            time: Duration::from_millis(time),
        };
        lines.push(at(Phase::Invoke, begin));
        lines.push(if lost {
            at(Phase::Info, end)
        } else {
            at(
                Phase::Ok {
                    value: seen,
                    revision: 0,
                },
                end,
            )
        });
    }
    lines.sort_by_key(|line| line.time);
    lines
}

#[test]
fn simulated_registers_pass_and_one_forged_read_is_caught() {
    for seed in 0..40 {
        let lines = simulated(seed, 200, 0.1);
        let verdict = check(&lines);
        assert!(verdict.is_good(), "seed {seed}: {verdict:?}");
        // The last read that saw something now saw the first value that was written for certain.
        let first = lines.iter().find_map(|line| match (&line.function, line.phase) {
            (Function::Write(new) | Function::Cas(_, new), Phase::Ok { .. }) => Some(*new),
            _ => None,
        });
        let mut forged = lines;
        let reads = forged.iter_mut().rev();
        let seen = reads.filter_map(|line| match &mut line.phase {
            Phase::Ok {
                value: Some(value), ..
            } if line.function == Function::Read && *value > 100 => Some(value),
            _ => None,
        });
        if let Some(value) = { seen }.next() {
            *value = first.unwrap();
            assert!(!check(&forged).is_good(), "seed {seed}");
        }
    }
}

#[test]
fn the_search_is_bounded() {
    // Fourteen concurrent writes and reads that see them in no possible order.
    let mut text = String::new();
    for value in 1..=14 {
        let _ = writeln!(text, "{value} 0..100 w {value}");
    }
    for value in 1..=14 {
        let _ = writeln!(
            text,
            "{} {}..{} r {value}",
            100 + value,
            200 + value * 10,
            205 + value * 10
        );
    }
    let history = history(&text);
    let of = pair(&history);
    assert!(matches!(Search::new(&of).run(1_000, LOOKS_MAX), Found::TooMuch));
}

#[test]
fn long_histories_with_many_unknown_outcomes_are_decided() {
    let began = std::time::Instant::now();
    for (seed, unknown) in [(1, 0.3), (2, 0.5), (3, 0.7)] {
        let lines = simulated(seed, 4_000, unknown);
        let verdict = check(&lines);
        assert!(
            verdict.is_good(),
            "seed {seed}: {:?} {:?}",
            verdict.undecided,
            verdict.findings.first()
        );
        // One read of something that had long been overwritten.
        let mut forged = lines;
        let read = forged.iter_mut().rfind(|line| {
            line.function == Function::Read
                && matches!(line.phase, Phase::Ok { value: Some(of), .. } if of > 3_600)
        });
        if let Some(Phase::Ok { value, .. }) = read.map(|line| &mut line.phase) {
            *value = Some(1);
        }
        let found = Search::new(&pair(&forged)).run(50_000, 5_000_000);
        assert!(!matches!(found, Found::Order), "seed {seed}");
    }
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "{:?}",
        began.elapsed()
    );
}

/// Thirty writers at once of whom nobody knows anything, half of whose values are read, some in no possible order.
#[test]
fn a_hopeless_record_costs_a_bounded_time_and_is_no_pass() {
    let mut text = String::new();
    for value in 1..=30 {
        let _ = writeln!(text, "{value} 0..{} w {value}", 1_000 + value);
    }
    for value in 1..=30 {
        let _ = writeln!(text, "{} 500..{} r {value}", 100 + value, 1_000 + value);
        let _ = writeln!(
            text,
            "{} 500..{} c {value} {}",
            200 + value,
            1_000 + value,
            1_000 + value
        );
    }
    let _ = writeln!(text, "999 3000..3001 r 1");
    let history = history(&text);
    let began = std::time::Instant::now();
    let found = Search::new(&pair(&history)).run(100_000, 10_000_000);
    assert!(!matches!(found, Found::Order));
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "{:?}",
        began.elapsed()
    );
}
