use super::*;

const TTL: Duration = Duration::from_secs(4);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `value` 0: deregistered; `end` 0: unknown.
fn write(id: &str, value: u64, server: u64, sent: u64, end: u64) -> Ap {
    Ap::Write {
        group: "g".into(),
        id: id.into(),
        value: (value > 0).then_some(value),
        ttl: None,
        server,
        sent: s(sent),
        end: (end > 0).then(|| s(end)),
        acks: 1,
    }
}

fn session(id: &str, sent: u64) -> Ap {
    Ap::Write {
        group: "g".into(),
        id: id.into(),
        value: Some(0),
        ttl: Some(TTL),
        server: 0,
        sent: s(sent),
        end: Some(s(sent)),
        acks: 1,
    }
}

fn beat(id: &str, sent: u64) -> Ap {
    Ap::Beat {
        group: "g".into(),
        id: id.into(),
        sent: s(sent),
        end: s(sent),
    }
}

fn view(server: u64, epoch: u64, at: u64, nodes: &[(&str, u64)]) -> Ap {
    let nodes: BTreeMap<String, u64> = nodes.iter().map(|(id, value)| ((*id).into(), *value)).collect();
    let sign = nodes.iter().map(|(id, value)| id.len() as u64 + value * 7).sum();
    Ap::View {
        group: "g".into(),
        server,
        epoch,
        sent: s(at),
        end: s(at),
        nodes,
        sign: (sign, 0),
    }
}

fn heal(at: u64) -> Ap {
    Ap::Heal {
        group: "g".into(),
        time: s(at),
    }
}

fn fault(time: u64, end: u64) -> Fault {
    Fault {
        what: "x".into(),
        time: s(time),
        end: s(end),
        bit: true,
        effect: String::new(),
    }
}

fn good(lines: &[Ap], faults: &[Fault]) {
    let verdict = check(lines, "g", faults);
    assert!(verdict.is_good(), "{verdict:?}");
}

fn bad(lines: &[Ap], wanted: &str) {
    let verdict = check(lines, "g", &[]);
    assert!(!verdict.findings.is_empty(), "{verdict:?}");
    let what = &verdict.findings[0].what;
    assert!(what.contains(wanted), "{what}");
}

#[test]
fn known_good_histories_pass() {
    // One after the other, at two servers; what was deregistered stays away.
    let ended = [heal(50), view(1, 1, 51, &[("b", 3)]), view(2, 1, 51, &[("b", 3)])];
    let mut lines = vec![
        write("a", 1, 1, 1, 2),
        write("b", 2, 1, 3, 4),
        view(1, 1, 5, &[("a", 1), ("b", 2)]),
        // It has not heard of the second yet.
        view(2, 1, 5, &[("a", 1)]),
        write("a", 0, 2, 6, 7),
        write("b", 3, 2, 6, 7),
        // Neither has the first of what came after.
        view(1, 1, 8, &[("a", 1), ("b", 2)]),
    ];
    lines.extend(ended);
    good(&lines, &[]);
    // Concurrent writes, or one of unknown outcome: any may win.
    for winner in [&[("a", 1)][..], &[("a", 2)], &[]] {
        good(
            &[
                write("a", 1, 1, 1, 5),
                write("a", 2, 2, 2, 6),
                write("a", 0, 2, 3, 0),
                heal(9),
                view(1, 1, 10, winner),
                view(2, 1, 10, winner),
            ],
            &[],
        );
    }
    // A crash takes back what was shown a moment before.
    good(
        &[
            write("a", 1, 1, 1, 2),
            view(2, 1, 3, &[("a", 1)]),
            write("a", 0, 1, 4, 5),
            view(2, 1, 5, &[]),
            view(2, 2, 6, &[("a", 1)]),
            heal(9),
            view(1, 1, 10, &[]),
            view(2, 2, 10, &[]),
        ],
        &[],
    );
}

#[test]
fn lost_resurrected_and_older_writes_are_caught() {
    let end = |nodes: &[(&str, u64)]| [heal(50), view(1, 1, 51, nodes), view(2, 1, 51, nodes)];
    let with = |mut lines: Vec<Ap>, nodes: &[(&str, u64)]| {
        lines.extend(end(nodes));
        lines
    };
    bad(&with(vec![write("a", 1, 3, 1, 2)], &[]), "is lost");
    bad(
        &with(vec![write("a", 1, 3, 1, 2), write("a", 0, 3, 3, 4)], &[("a", 1)]),
        "is back",
    );
    bad(
        &with(vec![write("a", 1, 3, 1, 2), write("a", 2, 4, 3, 4)], &[("a", 1)]),
        "older write",
    );
    bad(
        &with(vec![write("a", 1, 3, 1, 2)], &[("a", 1), ("z", 9)]),
        "nobody registered",
    );
    // Registered anew just as it was: still the last word.
    bad(
        &with(
            vec![
                write("a", 1, 3, 1, 2),
                write("a", 0, 4, 3, 4),
                write("a", 1, 3, 5, 6),
            ],
            &[],
        ),
        "is lost",
    );
}

#[test]
fn servers_that_differ_in_the_end_are_caught() {
    let lines = |other: &[Ap]| {
        let mut lines = vec![
            write("a", 1, 1, 1, 5),
            write("a", 2, 2, 1, 5),
            heal(9),
            view(1, 1, 20, &[("a", 1)]),
        ];
        lines.extend_from_slice(other);
        lines
    };
    bad(&lines(&[view(2, 1, 20, &[("a", 2)])]), "still differ");
    bad(&lines(&[view(2, 1, 8, &[("a", 1)])]), "showed nothing");
    let Ap::View { mut sign, .. } = view(2, 1, 20, &[("a", 1)]) else {
        unreachable!()
    };
    sign.0 += 1;
    let mut other = view(2, 1, 20, &[("a", 1)]);
    if let Ap::View { sign: of, .. } = &mut other {
        *of = sign;
    }
    bad(&lines(&[other]), "different signs");
    // They were late, though the same in the end.
    let [one, other] = [1, 2].map(|server| view(server, 1, 40, &[("a", 1)]));
    bad(&lines(&[view(2, 1, 20, &[("a", 2)]), one, other]), "still differ");
    // A session lapsed between the two looks, here sooner than there; it is gone in the end.
    let [one, other] = [1, 2].map(|server| view(server, 1, 40, &[("a", 1)]));
    let silent = view(2, 1, 20, &[("a", 1), ("s", 0)]);
    good(&lines(&[session("s", 1), silent.clone(), one, other]), &[]);
    bad(&lines(&[session("s", 1), silent]), "still differ");
}

#[test]
fn a_server_that_goes_back_is_caught() {
    let end = [heal(50), view(1, 1, 51, &[]), view(2, 2, 51, &[])];
    let with = |mut lines: Vec<Ap>| {
        lines.splice(0..0, [write("a", 1, 1, 1, 2), write("a", 0, 1, 4, 5)]);
        lines.extend(end.clone());
        lines
    };
    let there = |epoch, at| view(2, epoch, at, &[("a", 1)]);
    let gone = |epoch, at| view(2, epoch, at, &[]);
    // In one life, at once; after a crash if it had been gone for longer than a sync takes.
    bad(&with(vec![there(2, 3), gone(2, 6), there(2, 7)]), "is back");
    bad(
        &with(vec![there(1, 3), gone(1, 6), gone(1, 7), there(2, 8)]),
        "is back",
    );
    // The server that took the deregistration.
    bad(&with(vec![view(1, 1, 6, &[("a", 1)])]), "acknowledged there");
    // Gone without a word; a crash may take back what was not synced yet.
    let silent = |views: &[Ap]| {
        let mut lines = vec![write("a", 1, 1, 1, 0)];
        lines.extend_from_slice(views);
        lines.extend([heal(50), view(1, 1, 51, &[]), view(2, 2, 51, &[])]);
        lines
    };
    bad(
        &silent(&[there(2, 3), gone(2, 6)]),
        "nobody had written anything else",
    );
    // A power cut takes back what was shown for long and is not synced, but nothing that was acknowledged there.
    let cut = Fault {
        what: "power-loss: [2]".into(),
        ..fault(5, 6)
    };
    let back = with(vec![there(1, 3), gone(1, 6), gone(1, 7), there(2, 8)]);
    assert!(check(&back, "g", std::slice::from_ref(&cut)).is_good());
    let older = with(vec![view(1, 2, 6, &[("a", 1)])]);
    assert!(!check(&older, "g", &[cut]).is_good());
    // Another server has its place now.
    let replaced = Fault {
        what: "resize: 2 more and back, twice".into(),
        ..fault(5, 6)
    };
    assert!(check(&older, "g", &[replaced]).is_good());
    good(&silent(&[there(1, 3), gone(2, 6)]), &[]);
    // The word came late, and nothing was ever left behind.
    good(&with(vec![gone(1, 1), there(1, 3), there(2, 6)]), &[]);
}

#[test]
fn sessions_are_neither_struck_off_early_nor_kept_for_ever() {
    let stop = |at| Ap::Stop {
        group: "g".into(),
        id: "s".into(),
        time: s(at),
    };
    let there = |at| view(1, 1, at, &[("s", 0)]);
    let gone = |at| view(1, 1, at, &[]);
    let mut life = vec![session("s", 1), there(2), beat("s", 3), beat("s", 6), stop(7)];
    let mut ended = life.clone();
    ended.extend([gone(12), heal(30), gone(31)]);
    good(&ended, &[]);
    let mut late = life.clone();
    late.extend([heal(30), there(31)]);
    bad(&late, "still shows");
    // Moves may have given it its time again; once they have ended it goes as any other.
    assert!(check_moving(&late, "g", &[]).is_good());
    late.push(there(47));
    let kept = check_moving(&late, "g", &[]);
    assert!(kept.findings[0].what.contains("still shows"), "{kept:?}");
    life.extend([gone(8), heal(30), gone(31)]);
    bad(&life, "struck");
    // It was cut off for a ttl, or now and then for half of it.
    good(&life, &[fault(3, 9)]);
    good(&life, &[fault(1, 2), fault(3, 4), fault(5, 6)]);
    // Or its server took nobody's word, for its clock was behind.
    let behind = Fault {
        what: "clock: 2 by -200 s".into(),
        ..fault(1, 9)
    };
    good(&life, &[behind]);
    // Faults that are short, over before it, or the same twice, or that keep no server from another, are no excuse.
    let of_clients = Fault {
        what: "client-cut: host 1".into(),
        ..fault(3, 9)
    };
    for faults in [
        vec![fault(3, 3)],
        vec![fault(3, 4)],
        vec![fault(3, 4), fault(3, 4), fault(4, 4)],
        vec![fault(7, 9)],
        vec![of_clients],
    ] {
        let verdict = check(&life, "g", &faults);
        assert_eq!(verdict.findings.len(), 1, "{faults:?} are no excuse: {verdict:?}");
    }
    let old = [
        session("s", 1),
        there(2),
        beat("s", 29),
        gone(30),
        heal(40),
        gone(41),
    ];
    let verdict = check(&old, "g", &[fault(1, 12)]);
    assert!(!verdict.findings.is_empty(), "long over: {verdict:?}");
    let alive = [session("s", 1), there(2), beat("s", 29), heal(30), gone(31)];
    let verdict = check(&alive, "g", &[]);
    assert!(!verdict.findings.is_empty(), "{verdict:?}");
}

#[test]
fn wrong_clocks_leave_only_the_order_of_one_server() {
    let clock = |seconds: i64| Fault {
        what: format!("clock: 2 by {seconds} s"),
        ..fault(1, 9)
    };
    let lines = |nodes: &[(&str, u64)]| {
        [
            write("a", 1, 1, 1, 2),
            write("a", 2, 2, 3, 4),
            heal(50),
            view(1, 1, 51, nodes),
            view(2, 1, 51, nodes),
        ]
    };
    bad(&lines(&[("a", 1)]), "older write");
    good(&lines(&[("a", 1)]), &[clock(-60)]);
    // Lost all the same, and of one server's own words the last wins.
    assert!(!check(&lines(&[]), "g", &[clock(-60)]).is_good());
    let own = [
        write("a", 1, 2, 1, 2),
        write("a", 2, 2, 3, 4),
        view(2, 1, 6, &[("a", 1)]),
        heal(50),
        view(2, 1, 51, &[("a", 1)]),
    ];
    assert!(!check(&own, "g", &[clock(60)]).is_good());
    // Ahead: what it wrote is not with the others yet.
    let late = [
        write("a", 1, 2, 1, 2),
        heal(50),
        view(1, 1, 51, &[]),
        view(2, 1, 51, &[("a", 1)]),
    ];
    let verdict = check(&late, "g", &[clock(60)]);
    assert!(verdict.findings.is_empty(), "{verdict:?}");
}

#[test]
fn watchers_are_told_of_no_removal_that_was_none() {
    let told = |at| Ap::Removed {
        group: "g".into(),
        server: 2,
        id: "a".into(),
        time: s(at),
    };
    let lines = |at| {
        [
            write("a", 1, 1, 1, 2),
            told(at),
            write("a", 0, 1, 5, 6),
            heal(9),
            view(1, 1, 10, &[]),
        ]
    };
    good(&lines(7), &[]);
    bad(&lines(4), "told a watcher");
    assert!(!check(&[], "g", &[]).is_good(), "nothing was judged");
    // Nobody was told that it is done, and its server crashed before it was.
    let mut unknown = lines(4);
    unknown[0] = write("a", 1, 1, 1, 0);
    good(&unknown, &[]);
}
