//! A directory writes the nodes of the groups of its own mode, and no others.

use rollcall_core::directory::{
    Command, Directory, Expected, GroupMode, GroupSettings, Limits, Override, Refusal,
};

use crate::scene::{
    Scene, deregister, group, node, open_session, put_group, register, service, set_override, update_node,
};

fn put(name: &str, mode: GroupMode) -> Command {
    let settings = GroupSettings {
        mode,
        auto_create: true,
        ..GroupSettings::default()
    };
    Command::PutGroup {
        group: group(name),
        settings,
        expected: Expected::Any,
    }
}

fn define(key: &str) -> Command {
    Command::PutService {
        key: service(key),
        settings: None,
        expected: Expected::Any,
    }
}

/// Everything that writes nodes or what is kept with them.
fn node_writes(path: &str) -> Vec<Command> {
    let key = node(path);
    vec![
        register(1, &[path]),
        deregister(None, path),
        deregister(Some(1), path),
        Command::Update {
            session: None,
            nodes: vec![update_node(path)],
        },
        set_override(path, Override::default()),
        Command::ClearOverride { key: key.clone() },
        Command::ConfirmRemoval {
            service: key.service,
            since: None,
            author: String::new(),
            reason: String::new(),
        },
    ]
}

#[test]
fn a_group_of_the_other_mode_may_be_defined_but_its_nodes_are_refused() {
    let mut scene = Scene::new(Limits::default());
    scene.done(put("edge", GroupMode::Ap));
    scene.done(define("edge/feed"));
    let other = Refusal::OtherMode {
        group: group("edge"),
        mode: GroupMode::Ap,
    };
    for command in node_writes("edge/feed/a:80") {
        assert_eq!(scene.refused(command), other);
    }
    // One node among others is enough, and a service that would be created too.
    assert_eq!(
        scene.refused(register(1, &["prod/feed/a:80", "edge/new/a:80"])),
        other
    );
    scene.done(register(1, &["prod/feed/a:80"]));
}

#[test]
fn a_directory_of_ap_groups_takes_their_nodes_and_refuses_those_of_cp_groups() {
    let mut view = Scene {
        directory: Directory::new(Limits::default()).serving(GroupMode::Ap),
        index: 0,
    };
    view.done(put("edge", GroupMode::Ap));
    view.done(put_group("prod"));
    view.done(open_session());
    view.done(register(1, &["edge/feed/a:80"]));
    for command in node_writes("edge/feed/a:80") {
        let result = view.apply(command).result;
        assert!(
            !matches!(result, Err(Refusal::OtherMode { .. })),
            "refused: {result:?}"
        );
    }
    let other = Refusal::OtherMode {
        group: group("prod"),
        mode: GroupMode::Cp,
    };
    for command in node_writes("prod/feed/a:80") {
        assert_eq!(view.refused(command), other);
    }
}

#[test]
fn a_put_does_not_change_the_mode_of_a_group_that_is_there() {
    let mut scene = Scene::new(Limits::default());
    scene.done(put("edge", GroupMode::Ap));
    for (name, mode) in [("edge", GroupMode::Cp), ("prod", GroupMode::Ap)] {
        match scene.refused(put(name, mode)) {
            Refusal::Invalid { field, problem } => {
                assert_eq!(field, "settings.mode");
                assert!(problem.contains("rollcall group set-mode"), "{problem}");
            }
            other => panic!("expected an invalid mode, found: {other}"),
        }
    }
    assert!(!scene.done(put("edge", GroupMode::Ap)).changed);
}
