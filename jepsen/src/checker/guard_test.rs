use super::*;
use crate::history::Shown;

const NAME: &str = "g/s";

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn set(ap: bool) -> Guarding {
    Guarding::Set {
        service: NAME.into(),
        ap,
        share: 3_000,
        window: s(600),
        ttl: s(2),
        one_holder: true,
        time: s(0),
    }
}

fn ids(of: std::ops::Range<u64>) -> Vec<String> {
    of.map(|id| format!("n{id}")).collect()
}

fn left(id: u64, at: u64) -> Guarding {
    Guarding::Left {
        service: NAME.into(),
        id: format!("n{id}"),
        sent: s(at),
        end: Some(s(at)),
        revision: Some(at),
    }
}

/// A deregistration that left a second before, and took nothing away (if it was answered).
fn left_in_vain(id: u64, at: u64, answered: bool) -> Guarding {
    Guarding::Left {
        service: NAME.into(),
        id: format!("n{id}"),
        sent: s(at - 1),
        end: answered.then(|| s(at + 1)),
        revision: None,
    }
}

fn silent(of: std::ops::Range<u64>, at: u64) -> Guarding {
    Guarding::Silent {
        service: NAME.into(),
        ids: ids(of),
        time: s(at),
    }
}

fn said(engaged: bool, removed: u32, revision: u64) -> Guarding {
    Guarding::Said {
        service: NAME.into(),
        server: 1,
        time: s(50),
        engaged,
        removed: Some(removed),
        revision,
    }
}

/// One change a second: those that join, and those that go.
fn told(of: &[(std::ops::Range<u64>, std::ops::Range<u64>)]) -> Vec<Following> {
    let mut lines = vec![Following::Open {
        watch: "w".into(),
        service: NAME.into(),
        server: 1,
        from: 0,
        time: s(0),
    }];
    let shown = |id: String| Shown {
        id,
        value: 0,
        session: 1,
        incarnation: 1,
        suspect: false,
    };
    lines.extend((1..).zip(of).map(|(at, (joined, gone))| Following::Event {
        watch: "w".into(),
        revision: at,
        whole: false,
        put: ids(joined.clone()).into_iter().map(shown).collect(),
        removed: ids(gone.clone()),
        time: s(at),
    }));
    lines
}

fn good(lines: &[Guarding], following: &[Following]) {
    let verdict = check(lines, following, &[], &[]);
    assert!(verdict.is_good(), "{verdict:?}");
}

fn bad(lines: &[Guarding], following: &[Following], wanted: &str) {
    let verdict = check(lines, following, &[], &[]);
    assert_eq!(verdict.findings.len(), 1, "{verdict:?}");
    assert!(verdict.findings[0].what.contains(wanted), "{verdict:?}");
}

#[test]
fn removals_within_the_share_pass_and_words_do_not_count() {
    let lines = [
        set(false),
        silent(0..3, 1),
        left(9, 4),
        left(8, 4),
        said(false, 3, 4),
    ];
    // Three of ten, in two steps, and two by word.
    good(
        &lines,
        &told(&[(0..10, 0..0), (0..0, 0..2), (0..0, 2..3), (0..0, 8..10)]),
    );
    // Joining raises what may go: 30 % of 20.
    let lines = [set(false), silent(0..6, 1), said(false, 6, 4)];
    good(
        &lines,
        &told(&[(0..10, 0..0), (0..0, 0..2), (10..20, 0..0), (0..0, 2..6)]),
    );
    // One may always go, but not the last.
    good(
        &[set(false), silent(0..1, 1)],
        &told(&[(0..2, 0..0), (0..0, 0..1)]),
    );
}

#[test]
fn removals_beyond_the_share_and_of_the_last_are_caught() {
    let lines = [set(false), silent(0..9, 1)];
    bad(
        &lines,
        &told(&[(0..10, 0..0), (0..0, 0..4)]),
        "lapsed away in one window",
    );
    // A new leader that begins to count anew.
    bad(
        &lines,
        &told(&[(0..10, 0..0), (0..0, 0..3), (0..0, 3..5)]),
        "lapsed away in one window",
    );
    // Leaving by word lowers what may go.
    bad(
        &[set(false), silent(0..9, 1), left(8, 2), left(9, 2)],
        &told(&[(0..10, 0..0), (0..0, 0..1), (0..0, 8..10), (0..0, 1..3)]),
        "lapsed away in one window",
    );
    bad(
        &[set(false), silent(0..1, 1)],
        &told(&[(0..1, 0..0), (0..0, 0..1)]),
        "the last node",
    );
}

#[test]
fn blocked_words_false_counts_and_stuck_guards_are_caught() {
    let blocked = Guarding::Blocked {
        service: NAME.into(),
        id: "n1".into(),
        why: "the guard is engaged".into(),
        time: s(3),
    };
    let following = told(&[(0..10, 0..0), (0..0, 0..2)]);
    bad(&[set(false), blocked], &following, "blocked");
    bad(&[set(false), said(true, 2, 2)], &following, "still engaged");
    bad(&[set(false), said(false, 5, 2)], &following, "says that 5");
    bad(&[set(false), left(7, 5)], &following, "still listed");
}

/// A node may lapse while the word that it is to go is under way: the answer to that says which it was.
#[test]
fn what_lapsed_while_its_deregistration_was_under_way_has_lapsed() {
    let following = told(&[(0..10, 0..0), (0..0, 0..1)]);
    let with = |word, claimed| [set(false), silent(0..1, 1), word, said(false, claimed, 2)];
    good(&with(left_in_vain(0, 2, true), 1), &following);
    bad(&with(left_in_vain(0, 2, true), 0), &following, "says that 0");
    good(&with(left(0, 2), 0), &following);
    bad(&with(left(0, 2), 1), &following, "says that 1");
    // Nobody knows.
    good(&with(left_in_vain(0, 2, false), 0), &following);
    good(&with(left_in_vain(0, 2, false), 1), &following);
    bad(&with(left_in_vain(0, 2, false), 2), &following, "says that 2");
}

#[test]
fn a_confirmation_takes_what_is_held_and_nothing_else() {
    let confirmed = Guarding::Confirmed {
        service: NAME.into(),
        sent: s(3),
    };
    let mut following = told(&[(0..10, 0..0), (0..5, 0..0), (0..0, 0..5)]);
    // The second time they are told of they are held.
    if let Some(Following::Event { put, .. }) = following.get_mut(2) {
        put.iter_mut().for_each(|of| of.suspect = true);
    }
    good(&[set(false), confirmed.clone(), said(false, 0, 3)], &following);
    bad(
        &[set(false), confirmed],
        &told(&[(0..10, 0..0), (0..0, 0..0), (0..0, 0..5)]),
        "lapsed away in one window",
    );
}

#[test]
fn each_server_of_an_ap_group_counts_by_itself() {
    let at = |server, time, of: std::ops::Range<u64>| Guarding::Listed {
        service: NAME.into(),
        server,
        epoch: 1,
        sent: s(time),
        end: s(time),
        ids: ids(of),
        suspects: Vec::new(),
    };
    let listed = |server, of| at(server, 30, of);
    let mut lines = vec![set(true), silent(0..3, 1)];
    lines.extend(ids(0..10).into_iter().map(|id| Guarding::Joined {
        service: NAME.into(),
        id,
        sent: s(1),
        end: Some(s(1)),
    }));
    lines.extend([at(1, 2, 0..10), at(2, 2, 0..10)]);
    let with = |views: &[Guarding]| [&lines[..], views].concat();
    good(&with(&[listed(1, 3..10), listed(2, 3..10)]), &[]);
    bad(&with(&[listed(1, 4..10)]), &[], "may at most");
    // Somebody was cut off meanwhile: two judges, each with a share.
    let fault = fault(5, 9);
    let cut = with(&[listed(1, 6..10), listed(2, 6..10)]);
    assert!(check(&cut, &[], std::slice::from_ref(&fault), &[]).is_good());
    assert_eq!(check(&cut, &[], &[], &[]).findings.len(), 2);
    assert_eq!(
        check(&with(&[listed(1, 7..10), listed(2, 7..10)]), &[], &[fault], &[])
            .findings
            .len(),
        2
    );
    assert!(!check(&[], &[], &[], &[]).is_good(), "nothing was judged");
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

/// Seed 2002 of the lab: a server was started anew and cut off, one after the other, since the word was given.
#[test]
fn a_server_of_an_ap_group_must_have_heard_only_if_there_was_a_calm_moment() {
    let lists_one_that_left = [
        set(true),
        left(1, 5),
        Guarding::Listed {
            service: NAME.into(),
            server: 2,
            epoch: 1,
            sent: s(30),
            end: s(30),
            ids: ids(0..3),
            suspects: Vec::new(),
        },
    ];
    let found = |faults: &[Fault]| check(&lists_one_that_left, &[], faults, &[]).findings.len();
    assert_eq!(found(&[]), 1);
    assert_eq!(found(&[fault(0, 12), fault(16, 27)]), 0);
    assert_eq!(found(&[fault(0, 12), fault(17, 27)]), 1, "five seconds");
    assert_eq!(found(&[fault(0, 12), fault(11, 14), fault(16, 31)]), 0);

    let holds = [set(true), said(true, 2, 2)];
    let found = |faults: &[Fault]| check(&holds, &[], faults, &[]).findings.len();
    assert_eq!(found(&[fault(0, 45)]), 1);
    assert_eq!(found(&[fault(0, 46)]), 0);
    // Who is silent may not have been held when it was confirmed that they are gone.
    let confirmed = Guarding::Confirmed {
        service: NAME.into(),
        sent: s(20),
    };
    let holds = [set(true), confirmed, said(true, 2, 2)];
    let found = |faults: &[Fault]| check(&holds, &[], faults, &[]).findings.len();
    assert_eq!(found(&[fault(0, 15)]), 1);
    assert_eq!(found(&[fault(0, 16)]), 0);
    assert_eq!(
        check(&[set(false), said(true, 2, 2)], &[], &[fault(0, 46)], &[])
            .findings
            .len(),
        1,
        "what Raft says is the same everywhere"
    );
}

/// Nine of ten dead, all shown as up, and the guard not engaged.
#[test]
fn who_is_silent_is_shown_as_what_it_is() {
    let joined = [(0..10, 0..0)];
    let dead = [set(false), silent(0..9, 1), said(false, 0, 1)];
    bad(&dead, &told(&joined), "shown as up");
    let suspects = |of: std::ops::Range<u64>| {
        let mut following = told(&[(0..10, 0..0), (of, 0..0)]);
        if let Some(Following::Event { put, .. }) = following.get_mut(2) {
            put.iter_mut().for_each(|of| of.suspect = true);
        }
        following
    };
    good(&dead, &suspects(0..9));
    bad(&dead, &suspects(0..8), "1 nodes fell silent");
    // Not yet; it had returned; there was a fault; nobody looked later.
    good(&[set(false), silent(0..9, 45), said(false, 0, 1)], &told(&joined));
    let returned = Guarding::Returned {
        service: NAME.into(),
        time: s(6),
    };
    good(&[&dead[..], &[returned]].concat(), &told(&joined));
    assert!(check(&dead, &told(&joined), &[fault(3, 4)], &[]).is_good());
    let newer = [set(false), silent(0..9, 1), said(false, 0, 3)];
    assert!(check(&newer, &told(&joined), &[], &[]).findings.is_empty());
}

#[test]
fn who_is_silent_is_shown_as_what_it_is_by_every_server_of_an_ap_group() {
    let listed = |server, time, suspects: std::ops::Range<u64>| Guarding::Listed {
        service: NAME.into(),
        server,
        epoch: 1,
        sent: s(time),
        end: s(time),
        ids: ids(0..10),
        suspects: ids(suspects),
    };
    let lines = [set(true), silent(0..9, 1), listed(1, 6, 0..0), listed(1, 8, 0..9)];
    good(&lines, &[]);
    bad(
        &[&lines[..], &[listed(2, 8, 0..5)]].concat(),
        &[],
        "4 nodes fell silent",
    );
}

#[test]
fn a_confirmation_that_does_nothing_is_caught() {
    let lines = |refused: Option<&str>| {
        let confirmed = Guarding::Confirmed {
            service: NAME.into(),
            sent: s(10),
        };
        let answered = Guarding::Answered {
            service: NAME.into(),
            refused: refused.map(Into::into),
            time: s(11),
        };
        [
            set(false),
            silent(0..5, 1),
            confirmed,
            answered,
            said(false, 0, 2),
        ]
    };
    let held = |gone: std::ops::Range<u64>| {
        let mut following = told(&[(0..10, 0..0), (0..5, 0..0), (0..0, gone)]);
        if let Some(Following::Event { put, .. }) = following.get_mut(2) {
            put.iter_mut().for_each(|of| of.suspect = true);
        }
        if let Some(Following::Event { time, .. }) = following.get_mut(3) {
            *time = s(12);
        }
        following
    };
    good(&lines(None), &held(0..5));
    bad(&lines(None), &held(0..4), "acknowledged; 1 nodes");
    bad(&lines(Some("no")), &held(0..0), "refused: no; 5 nodes");
    assert!(check(&lines(None), &held(0..0), &[fault(9, 13)], &[]).is_good());
}
