//! What is exported is read back by a reader of its own, and is the same.

use std::iter::Peekable;
use std::str::Chars;
use std::time::Duration;

use super::super::{Fault, Function, History, Operation, Phase, Record};
use super::*;

/// As much of EDN as Jepsen writes.
#[derive(Clone, Debug, PartialEq)]
enum Edn {
    Nil,
    Number(u64),
    Keyword(String),
    Text(String),
    Vector(Vec<Edn>),
    Map(Vec<(Edn, Edn)>),
}

fn read(chars: &mut Peekable<Chars<'_>>) -> Edn {
    while chars
        .next_if(|next| next.is_whitespace() || *next == ',')
        .is_some()
    {}
    match chars.next().unwrap() {
        '{' => {
            let mut items = sequence(chars, '}').into_iter();
            let mut pairs = Vec::new();
            while let Some(key) = items.next() {
                pairs.push((key, items.next().unwrap()));
            }
            Edn::Map(pairs)
        }
        '[' => Edn::Vector(sequence(chars, ']')),
        '"' => {
            let mut text = String::new();
            loop {
                match chars.next().unwrap() {
                    '"' => return Edn::Text(text),
                    '\\' => text.push(match chars.next().unwrap() {
                        'n' => '\n',
                        other => other,
                    }),
                    other => text.push(other),
                }
            }
        }
        ':' => Edn::Keyword(word(String::new(), chars)),
        first => match word(first.into(), chars).as_str() {
            "nil" => Edn::Nil,
            number => Edn::Number(number.parse().unwrap()),
        },
    }
}

fn sequence(chars: &mut Peekable<Chars<'_>>, end: char) -> Vec<Edn> {
    let mut items = Vec::new();
    loop {
        while chars
            .next_if(|next| next.is_whitespace() || *next == ',')
            .is_some()
        {}
        if chars.next_if_eq(&end).is_some() {
            return items;
        }
        items.push(read(chars));
    }
}

fn word(mut word: String, chars: &mut Peekable<Chars<'_>>) -> String {
    while let Some(next) = chars.next_if(|next| next.is_alphanumeric() || *next == '-') {
        word.push(next);
    }
    word
}

impl Edn {
    fn at(&self, key: &str) -> Edn {
        let Edn::Map(pairs) = self else {
            panic!("{self:?} is no map")
        };
        let wanted = Edn::Keyword(key.into());
        let found = pairs.iter().find(|(key, _)| *key == wanted);
        found.map_or(Edn::Nil, |(_, value)| value.clone())
    }

    fn keyword(&self) -> &str {
        match self {
            Edn::Keyword(word) => word,
            other => panic!("{other:?} is no keyword"),
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Edn::Nil => None,
            Edn::Number(number) => Some(*number),
            other => panic!("{other:?} is no number"),
        }
    }

    fn pair(&self) -> (Edn, Edn) {
        match self {
            Edn::Vector(items) => {
                let [one, two] = items.as_slice() else {
                    panic!("{items:?} is no pair")
                };
                (one.clone(), two.clone())
            }
            other => panic!("{other:?} is no pair"),
        }
    }
}

/// An operation, if it is one of a client.
fn operation_of(map: &Edn) -> Option<Operation> {
    let process = match map.at("process") {
        Edn::Number(process) => process,
        _ => return None,
    };
    let (key, value) = map.at("value").pair();
    let kind = map.at("type");
    let function = match map.at("f").keyword() {
        "read" => Function::Read,
        "write" => Function::Write(value.number().unwrap()),
        _ => {
            let (old, new) = value.pair();
            Function::Cas(old.number(), new.number().unwrap())
        }
    };
    let seen = if function == Function::Read {
        value.number()
    } else {
        None
    };
    Some(Operation {
        process,
        key: key.number().unwrap(),
        function,
        phase: match kind.keyword() {
            "invoke" => Phase::Invoke,
            "ok" => Phase::Ok {
                value: seen,
                revision: map.at("rev").number().unwrap_or(0),
            },
            "fail" => Phase::Fail,
            "info" => Phase::Info,
            other => panic!("type {other}"),
        },
        time: Duration::from_nanos(map.at("time").number().unwrap()),
    })
}

fn sample() -> Vec<Operation> {
    let line = |process, key, function: &Function, phase, micros| Operation {
        process,
        key,
        function: function.clone(),
        phase,
        time: Duration::from_micros(micros),
    };
    let (read, write, cas) = (Function::Read, Function::Write(5), Function::Cas(None, 7));
    let swap = Function::Cas(Some(5), 9);
    let ok = |value, revision| Phase::Ok { value, revision };
    vec![
        line(0, 3, &write, Phase::Invoke, 1),
        line(1, 3, &read, Phase::Invoke, 2),
        line(0, 3, &write, ok(None, 12), 1_500_250),
        line(1, 3, &read, ok(Some(5), 12), 1_500_251),
        line(1, 4, &read, Phase::Invoke, 1_600_000),
        line(1, 4, &read, ok(None, 0), 1_600_007),
        line(2, 4, &cas, Phase::Invoke, 1_700_000),
        line(2, 4, &cas, Phase::Fail, 1_700_001),
        line(1, 3, &swap, Phase::Invoke, 3_599_999_999),
        line(1, 3, &swap, Phase::Info, 3_600_000_001),
        line(5, 3, &read, Phase::Invoke, 3_600_000_002),
        line(5, 3, &read, Phase::Fail, 3_600_000_003),
    ]
}

#[test]
fn what_is_exported_is_read_back_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    let history = History::start(Some(&path)).unwrap();
    for operation in sample() {
        history.record(Record::Operation(operation));
    }
    history.record(Record::Note(Duration::from_secs(1), "not for Jepsen".into()));
    history.record(Record::Fault(Fault {
        what: "kill: \"2\"\\".into(),
        time: Duration::from_micros(3),
        end: Duration::from_micros(1_500_000),
        bit: true,
        effect: "it ended".into(),
    }));
    history.flush().unwrap();

    let mut edn = Vec::new();
    let lines = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
    let exported = export(lines, &mut edn).unwrap();
    let edn = String::from_utf8(edn).unwrap();
    assert_eq!(
        exported,
        Exported {
            operations: 12,
            faults: 2,
            left_out: 1
        }
    );
    let maps: Vec<Edn> = edn
        .lines()
        .map(|line| read(&mut line.chars().peekable()))
        .collect();
    let operations: Vec<Operation> = maps.iter().filter_map(operation_of).collect();
    assert_eq!(operations, sample());
    for (index, map) in (0_u64..).zip(&maps) {
        assert_eq!(map.at("index"), Edn::Number(index));
    }
    let times: Vec<_> = maps.iter().map(|map| map.at("time").number()).collect();
    assert!(times.is_sorted());
    let faults: Vec<&Edn> = maps
        .iter()
        .filter(|map| map.at("process") == Edn::Keyword("nemesis".into()))
        .collect();
    assert_eq!(faults.len(), 2);
    assert_eq!(faults[0].at("value"), Edn::Text("kill: \"2\"\\".into()));
    assert_eq!(
        edn.lines().next().unwrap(),
        "{:type :invoke, :f :write, :value [3 5], :process 0, :time 1000, :index 0}"
    );
    assert!(
        edn.contains("{:type :info, :f :cas, :value [3 [5 9]], :process 1, :time 3600000001000, :index ")
    );
    assert!(edn.contains(":type :fail, :f :cas, :value [4 [nil 7]]"));
}

#[test]
fn what_is_no_history_is_refused_with_its_line() {
    for (bad, why) in [
        ("{\"type\":\"ok\",\"f\":\"read\"}", "it has no process"),
        ("{}", "it has no type"),
        ("not json", "expected"),
    ] {
        let text = format!("{{\"type\":\"note\",\"what\":\"x\",\"time\":1.0}}\n{bad}\n");
        let refused = export(text.as_bytes(), Vec::new()).unwrap_err();
        let refused = format!("{refused:#}");
        assert!(
            refused.starts_with("line 2: ") && refused.contains(why),
            "{refused}"
        );
    }
}
