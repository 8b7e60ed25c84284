use rollcall_core::directory::Limits;
use rollcall_core::ids::{LogIndex, LogPosition, Term};

use super::*;

fn name() -> GroupName {
    "edge".parse().expect("a good name")
}

fn empty() -> [Directory; 2] {
    let directory = || Directory::new(Limits::default());
    [directory(), directory().serving(GroupMode::Ap)]
}

fn apply(directory: &mut Directory, command: Command) {
    let next = directory.revision().0 + 1;
    let at = LogPosition {
        term: Term(1),
        index: LogIndex(next),
    };
    let request = Request {
        id: RequestId(next.into()),
        command,
    };
    directory.apply(at, &request).result.expect("applied");
}

fn create(directory: &mut Directory, mode: GroupMode) {
    let settings = GroupSettings {
        mode,
        ..GroupSettings::default()
    };
    apply(
        directory,
        Command::PutGroup {
            group: name(),
            settings,
            expected: Expected::Any,
        },
    );
}

fn service(name: &str) -> ServiceKey {
    ServiceKey {
        group: self::name(),
        service: name.parse().expect("a good name"),
    }
}

fn put_service(directory: &mut Directory, name: &str) {
    let command = Command::PutService {
        key: service(name),
        settings: None,
        expected: Expected::Any,
    };
    apply(directory, command);
}

fn delete_service(directory: &mut Directory, name: &str) {
    let (key, expected) = (service(name), Expected::Any);
    apply(directory, Command::DeleteService { key, expected });
}

fn disable(directory: &mut Directory, name: &str) {
    let key = NodeKey {
        service: service(name),
        node: "away".parse().expect("a good name"),
    };
    let over = Override {
        disabled: Some(true),
        ..Override::default()
    };
    apply(directory, Command::SetOverride { key, over });
}

fn begin(directory: &mut Directory, to: GroupMode) {
    apply(
        directory,
        Command::BeginMove {
            group: name(),
            to,
            stamp_ms: directory.revision().0,
        },
    );
}

fn end(directory: &mut Directory, done: bool) {
    let since = directory.group(&name()).and_then(|group| group.moving);
    apply(
        directory,
        Command::EndMove {
            group: name(),
            since: since.expect("it moves").since,
            done,
        },
    );
}

/// The view does what follows from the log as it stands.
fn follow(raft: &Directory, view: &mut Directory) {
    for command in differences(raft, view, &Touched::all(raft, view)) {
        apply(view, command);
    }
}

fn is_missed(raft: &Directory, view: &Directory, known: &[&str]) -> bool {
    let known = known.iter().map(ToString::to_string).collect();
    missed(raft, view, &Touched::all(raft, view), &known) == [name()]
}

#[test]
fn a_group_that_was_created_where_it_is_was_not_missed() {
    let [mut raft, view] = empty();
    create(&mut raft, GroupMode::Ap);
    assert!(!is_missed(&raft, &view, &[]));
}

#[test]
fn a_group_of_which_only_the_end_of_a_move_is_seen_was_missed_unless_its_records_are_here() {
    let [mut raft, mut view] = empty();
    create(&mut raft, GroupMode::Cp);
    begin(&mut raft, GroupMode::Ap);
    end(&mut raft, true);
    assert!(is_missed(&raft, &view, &[]));
    assert!(!is_missed(&raft, &view, &["edge"]));
    // Once is enough: it is here from then on, and records come as they do for any other.
    follow(&raft, &mut view);
    assert!(!is_missed(&raft, &view, &[]));
}

/// Seed 12 of the lab: a server that came back saw both moves at once, and showed what the logs of the others brought it.
#[test]
fn a_group_that_is_on_its_way_back_already_was_missed_as_well() {
    let [mut raft, mut view] = empty();
    create(&mut raft, GroupMode::Cp);
    begin(&mut raft, GroupMode::Ap);
    end(&mut raft, true);
    begin(&mut raft, GroupMode::Cp);
    assert!(is_missed(&raft, &view, &[]));
    assert!(!is_missed(&raft, &view, &["edge"]));
    follow(&raft, &mut view);
    assert!(!is_missed(&raft, &view, &[]), "once is enough");
}

#[test]
fn a_group_whose_move_ended_before_it_was_taken_over_was_missed() {
    let [mut raft, mut view] = empty();
    create(&mut raft, GroupMode::Cp);
    begin(&mut raft, GroupMode::Ap);
    follow(&raft, &mut view);
    assert!(
        !is_missed(&raft, &view, &[]),
        "it still moves, and can be taken over"
    );
    end(&mut raft, true);
    assert!(is_missed(&raft, &view, &[]));
    assert!(!is_missed(&raft, &view, &["edge"]), "it was taken over in time");
}

#[test]
fn a_group_whose_move_was_taken_back_was_not_missed() {
    let [mut raft, mut view] = empty();
    create(&mut raft, GroupMode::Cp);
    begin(&mut raft, GroupMode::Ap);
    follow(&raft, &mut view);
    end(&mut raft, false);
    assert!(!is_missed(&raft, &view, &[]));
}

#[test]
fn a_group_with_nothing_in_it_needs_not_be_taken_over() {
    let [mut raft, view] = empty();
    create(&mut raft, GroupMode::Cp);
    begin(&mut raft, GroupMode::Ap);
    let touched = Touched::all(&raft, &view);
    assert!(bare(&raft, &touched).eq([&name()]));
    end(&mut raft, true);
    let touched = Touched::all(&raft, &view);
    assert_eq!(bare(&raft, &touched).count(), 0);
}

#[test]
fn a_service_whose_deletion_is_not_followed_yet_is_not_defined_anew() {
    let [mut raft, mut view] = empty();
    create(&mut raft, GroupMode::Ap);
    put_service(&mut raft, "deleted");
    follow(&raft, &mut view);
    put_service(&mut view, "created");
    disable(&mut view, "created");
    let followed = raft.revision();
    let of = |raft: &Directory, view: &Directory, since| {
        let unfollowed = touched_since(Some(since), raft, view);
        unknown(raft, view, &unfollowed)
    };
    assert_eq!(of(&raft, &view, followed), [service("created")]);
    delete_service(&mut raft, "deleted");
    assert_eq!(of(&raft, &view, followed), [service("created")]);
    follow(&raft, &mut view);
    assert_eq!(of(&raft, &view, raft.revision()), [service("created")]);
}

/// The log hears of the deletion before this server hears that the last node went.
#[test]
fn a_service_that_is_deleted_before_its_last_node_goes_here_is_not_defined_anew() {
    let [mut raft, mut view] = empty();
    create(&mut raft, GroupMode::Ap);
    put_service(&mut raft, "feed");
    follow(&raft, &mut view);
    // A word stands for a node.
    disable(&mut view, "feed");
    let followed = raft.revision();
    delete_service(&mut raft, "feed");
    let (mut leaving, now) = (BTreeMap::new(), std::time::Instant::now());
    let touched = touched_since(Some(followed), &raft, &view);
    leave(&mut leaving, &raft, &view, Some(&touched), now);
    assert!(leaving.contains_key(&service("feed")));
    let next = |view: &Directory| {
        let mut touched = touched_since(Some(raft.revision()), &raft, view);
        touched.services.extend(leaving.keys().cloned());
        touched
    };
    assert_eq!(unknown(&raft, &view, &next(&view)), []);
    assert_eq!(differences(&raft, &view, &next(&view)), []);
    let key = NodeKey {
        service: service("feed"),
        node: "away".parse().expect("a good name"),
    };
    apply(&mut view, Command::ClearOverride { key });
    let left = differences(&raft, &view, &next(&view));
    assert!(matches!(&left[..], [Command::DeleteService { key, .. }] if *key == service("feed")));
    // Registered again meanwhile, it is new.
    let touched = Touched::default();
    leave(&mut leaving, &raft, &view, Some(&touched), now + LEAVING);
    assert!(leaving.is_empty());
}

#[test]
fn what_was_defined_under_wider_limits_is_followed() {
    let [mut raft, mut view] = empty();
    create(&mut raft, GroupMode::Ap);
    for name in ["one", "two", "three"] {
        put_service(&mut raft, name);
    }
    let settings = GroupSettings {
        mode: GroupMode::Ap,
        services_max: 1,
        ..GroupSettings::default()
    };
    let (group, expected) = (name(), Expected::Any);
    apply(
        &mut raft,
        Command::PutGroup {
            group,
            settings,
            expected,
        },
    );
    follow(&raft, &mut view);
    assert_eq!(view.totals().services, 3);
    assert_eq!(differences(&raft, &view, &Touched::all(&raft, &view)), []);
}

/// It was cleared while the group was under Raft, and a server that was away then has it still.
#[test]
fn a_view_with_a_word_that_the_log_does_not_know_is_not_whole() {
    let [mut raft, mut view] = empty();
    create(&mut raft, GroupMode::Cp);
    create(&mut view, GroupMode::Ap);
    for directory in [&mut raft, &mut view] {
        put_service(directory, "feed");
    }
    let whole = |raft: &Directory, view: &Directory| {
        let [defined, seen] =
            [raft, view].map(|directory| directory.group(&name()).cloned().expect("it is there"));
        is_whole(&seen, &defined)
    };
    assert!(whole(&raft, &view));
    disable(&mut view, "feed");
    assert!(!whole(&raft, &view));
    disable(&mut raft, "feed");
    assert!(whole(&raft, &view));
}
