//! What is held and said, frame by frame, without a server.

use rollcall_proto::v1;
use tokio::time::Instant;
use v1::watch_frame::Frame;
use v1::watch_request::Request;

use super::State;
use crate::key::ServiceKey;
use crate::node::Node;
use crate::sign::Sign;
use crate::view::{Confirmed, Counted, ServiceView, Source};
use crate::watch::event::WatchEvent;
use crate::watch::target::{COMPARED, WatchTarget};

fn key() -> ServiceKey {
    ServiceKey::new("jobs", "s")
}

fn nodes(ids: &[&str]) -> Vec<v1::Node> {
    let node = |id: &&str| v1::Node {
        id: (*id).into(),
        weight: 100,
        kind: 1,
        state: 1,
        ..v1::Node::default()
    };
    ids.iter().map(node).collect()
}

fn sign(ids: &[&str]) -> Option<v1::Sign> {
    let nodes: Vec<Node> = nodes(ids).into_iter().map(Node::from).collect();
    Some(Sign::of_nodes(&nodes).into())
}

fn view(ids: &[&str], revision: u64) -> v1::ServiceView {
    v1::ServiceView {
        key: Some((&key()).into()),
        sign: sign(ids),
        revision,
        settings: None,
        nodes: nodes(ids),
        guard: None,
    }
}

fn list(ids: &[&str], revision: u64) -> Frame {
    list_as_of(ids, revision, revision)
}

fn list_as_of(ids: &[&str], changed: u64, revision: u64) -> Frame {
    Frame::Snapshot(v1::ServiceSnapshot {
        view: Some(view(ids, changed)),
        revision,
        lagged: false,
    })
}

fn change(key: &ServiceKey, revision: u64, created: bool, put: &[&str], after: &[&str]) -> Frame {
    Frame::Delta(v1::ServiceDelta {
        key: Some(key.into()),
        revision,
        created,
        sign: sign(after),
        put: nodes(put),
        ..v1::ServiceDelta::default()
    })
}

fn gone(key: &ServiceKey, revision: u64) -> Frame {
    let key = Some(key.into());
    Frame::Gone(v1::ServiceGone { key, revision })
}

fn started(subscription: u64, revision: u64, services: &[ServiceKey]) -> Frame {
    Frame::Started(v1::Started {
        subscription,
        kind: v1::StartKind::Current.into(),
        revision,
        services: services.iter().map(v1::ServiceKey::from).collect(),
        ..v1::Started::default()
    })
}

fn resumed(subscription: u64, revision: u64, services: &[ServiceKey]) -> Frame {
    let Frame::Started(started) = started(subscription, revision, services) else {
        unreachable!()
    };
    let kind = v1::StartKind::Resumed.into();
    Frame::Started(v1::Started { kind, ..started })
}

fn bookmark(revision: u64) -> Frame {
    Frame::Bookmark(v1::Bookmark { revision })
}

/// A stream and who looks at what it brings.
struct Scene {
    state: State,
    events: u64,
}

impl Scene {
    fn following(target: &WatchTarget) -> Self {
        let mut state = State::new(100, false);
        state.want(target);
        let (events, _) = state.add_queue(target);
        state.on_connected();
        Self { state, events }
    }

    /// One message of the cluster "new"; nobody is left.
    fn hear(&mut self, frames: impl IntoIterator<Item = Frame>) {
        self.hear_of(Counted::Cluster, frames);
    }

    fn hear_of(&mut self, counted: Counted, frames: impl IntoIterator<Item = Frame>) {
        self.state.on_message("new", counted);
        for frame in frames {
            let todo = self.state.on_frame(v1::WatchFrame { frame: Some(frame) });
            assert_eq!(todo.leave, None);
        }
        self.state.on_message_end();
    }

    /// All that is to be said by then.
    fn say(&mut self, later: std::time::Duration) -> Vec<Request> {
        let now = Instant::now() + later;
        std::iter::from_fn(|| self.state.take_request(now)).collect()
    }

    fn say_now(&mut self) -> Vec<Request> {
        self.say(std::time::Duration::ZERO)
    }

    /// The number of the only subscription that is asked for by then.
    fn asked(&mut self, later: std::time::Duration) -> u64 {
        let said = self.say(later);
        let asked = said.iter().filter_map(|request| match request {
            Request::Subscribe(subscribe) => Some(subscribe.subscription),
            Request::Unsubscribe(_) | Request::Ack(_) => None,
        });
        let asked: Vec<u64> = asked.collect();
        assert_eq!(asked.len(), 1, "{said:?}");
        asked[0]
    }

    fn asked_now(&mut self) -> u64 {
        self.asked(std::time::Duration::ZERO)
    }

    fn told(&mut self) -> Vec<String> {
        let event = |event| match event {
            WatchEvent::Snapshot { view, .. } => format!("list {}", ids(&view)),
            WatchEvent::Changed { view, .. } => format!("change {}", ids(&view)),
            WatchEvent::Gone { .. } => "gone".into(),
            WatchEvent::Live { .. } => "live".into(),
            WatchEvent::Interrupted { reason } => format!("interrupted: {reason}"),
            WatchEvent::Lagged { views } => format!("lagged, {} services", views.len()),
            other => format!("{other:?}"),
        };
        std::iter::from_fn(|| self.state.take_event(self.events))
            .map(event)
            .collect()
    }
}

fn ids(view: &ServiceView) -> String {
    let ids: Vec<&str> = view.nodes.iter().map(|node| node.id.as_ref()).collect();
    ids.join(",")
}

fn acknowledged(said: &[Request]) -> Vec<u64> {
    let ack = |request: &Request| match request {
        Request::Ack(ack) => Some(ack.revision),
        Request::Subscribe(_) | Request::Unsubscribe(_) => None,
    };
    said.iter().filter_map(ack).collect()
}

/// The watch was dropped and taken up again while a change was under way, and then the service was deleted.
fn missed() -> Scene {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    scene.asked_now();
    scene.hear([change(&key(), 5, false, &["b"], &["a", "b"])]);
    scene
}

#[test]
fn a_service_that_is_gone_before_its_list_comes_is_not_waited_for() {
    let mut scene = missed();
    let number = scene.asked_now();
    scene.hear([started(number, 9, &[])]);
    assert_eq!(scene.told(), ["gone", "live"]);
    scene.hear([change(&key(), 10, true, &["a"], &["a"])]);
    assert_eq!(scene.told(), ["change a"]);
    assert_eq!(acknowledged(&scene.say_now()), [10]);
}

#[test]
fn a_service_that_is_said_to_be_gone_is_not_waited_for() {
    let mut scene = missed();
    scene.hear([gone(&key(), 9), change(&key(), 10, true, &["a"], &["a"])]);
    assert_eq!(scene.told(), ["gone", "change a"]);
}

#[test]
fn a_slow_reader_is_told_how_its_subscription_stands() {
    let mut scene = Scene::following(&WatchTarget::group("jobs"));
    let number = scene.asked_now();
    let services: Vec<ServiceKey> = (0..150)
        .map(|at| ServiceKey::new("jobs", format!("s{at}")))
        .collect();
    let created = |key: &ServiceKey| change(key, 5, true, &["a"], &["a"]);
    let mut frames: Vec<Frame> = services.iter().map(created).collect();
    frames.push(started(number, 5, &services));
    scene.hear(frames);
    assert_eq!(scene.told(), ["lagged, 150 services", "live"]);

    // The last word counts, and what comes after the state was read stands behind it.
    let again = |at: u64| change(&services[0], at, false, &["a"], &["a"]);
    scene.state.on_interrupted("one");
    scene.hear((6..156).map(again));
    scene.state.on_interrupted("two");
    let first = scene.state.take_event(scene.events);
    assert!(matches!(first, Some(WatchEvent::Lagged { .. })), "{first:?}");
    scene.hear([again(156)]);
    assert_eq!(scene.told(), ["interrupted: two", "change a"]);

    // Also if it was in the queue already when that was full.
    scene.state.on_interrupted("three");
    scene.hear((157..307).map(again));
    assert_eq!(scene.told(), ["lagged, 150 services", "interrupted: three"]);
}

/// A resume sends changes alone, and the list that is waited for would never come.
#[test]
fn a_resume_does_not_do_for_a_service_whose_list_is_waited_for() {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    let number = scene.asked_now();
    scene.hear([list(&["a"], 1), started(number, 1, &[key()])]);
    scene.hear([change(&key(), 5, false, &["c"], &["a", "b", "c"])]);
    let number = scene.asked_now();
    scene.hear([resumed(number, 9, &[key()])]);
    let number = scene.asked(super::frames::RESYNC_SPACING);
    scene.hear([list(&["a", "b"], 5), started(number, 9, &[key()])]);
    assert_eq!(scene.told(), ["list a", "live", "list a,b", "live"]);
}

/// A consumer that starts with what an earlier one saw at revision 700.
fn with_a_snapshot(ids: &[&str]) -> Scene {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    let held = ServiceView {
        source: Source::Disk,
        ..ServiceView::from_wire(
            view(ids, 700),
            700,
            ("new".into(), Counted::Cluster),
            Confirmed::Never,
        )
    };
    scene.state.offer(held);
    scene
}

/// The only subscription that is asked for a moment later, from state.
fn asked_anew(scene: &mut Scene) -> u64 {
    let said = scene.say(super::frames::RESYNC_SPACING);
    let asked = said.iter().filter_map(|request| match request {
        Request::Subscribe(one) => Some((one.after_revision, one.subscription)),
        Request::Unsubscribe(_) | Request::Ack(_) => None,
    });
    let asked: Vec<_> = asked.collect();
    let [(0, subscription)] = asked[..] else {
        panic!("{said:?}")
    };
    subscription
}

/// Servers that were started on a copy have the same name and count the same revisions again.
#[test]
fn a_list_that_was_lost_is_not_live_and_goes_when_the_servers_have_come_as_far_again() {
    let mut scene = with_a_snapshot(&["lost"]);
    let number = scene.asked_now();
    scene.hear([list_as_of(&["a"], 20, 30), started(number, 30, &[key()])]);
    scene.hear([change(&key(), 40, false, &["b"], &["a", "b"]), bookmark(699)]);
    assert_eq!(scene.told(), ["list lost"], "and nobody says that it is live");
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Disk);
    let said = scene.say(super::frames::RESYNC_SPACING);
    assert!(
        said.is_empty(),
        "what was not taken in is not acknowledged: {said:?}"
    );
    scene.hear([bookmark(700)]);
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Disk);
    let number = asked_anew(&mut scene);
    scene.hear([list_as_of(&["a", "b"], 40, 700), started(number, 700, &[key()])]);
    assert_eq!(scene.told(), ["list a,b", "live"]);
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Live);
    assert_eq!(acknowledged(&scene.say_now()), [700]);
}

#[test]
fn a_service_that_was_lost_goes_when_the_servers_have_come_as_far_again() {
    let mut scene = with_a_snapshot(&["lost"]);
    let number = scene.asked_now();
    scene.hear([gone(&key(), 30), started(number, 30, &[]), bookmark(701)]);
    assert_eq!(scene.told(), ["list lost"]);
    let number = asked_anew(&mut scene);
    scene.hear([started(number, 701, &[])]);
    assert_eq!(scene.told(), ["gone", "live"]);
    assert_eq!(acknowledged(&scene.say_now()), [701]);
}

#[test]
fn a_server_that_is_behind_replaces_nothing_and_confirms_when_it_has_caught_up() {
    let mut scene = with_a_snapshot(&["a", "b"]);
    let number = scene.asked_now();
    scene.hear([list(&["a"], 690), started(number, 690, &[key()])]);
    scene.hear([change(&key(), 700, false, &["b"], &["a", "b"]), bookmark(700)]);
    let number = asked_anew(&mut scene);
    assert_eq!(scene.told(), ["list a,b"]);
    scene.hear([list(&["a", "b"], 700), started(number, 700, &[key()])]);
    assert_eq!(scene.told(), ["live"]);
    scene.hear([change(&key(), 701, false, &["c"], &["a", "b", "c"])]);
    assert_eq!(scene.told(), ["change a,b,c"]);
    assert_eq!(acknowledged(&scene.say_now()), [701]);
}

/// Behind the positions that were reached meanwhile a server might have nothing to say of it.
#[test]
fn what_is_disputed_is_asked_for_from_state_at_the_next_server() {
    let mut scene = with_a_snapshot(&["lost"]);
    let number = scene.asked_now();
    scene.hear([list(&["a"], 30), started(number, 30, &[key()]), bookmark(600)]);
    scene.state.on_interrupted("broken");
    scene.state.on_connected();
    asked_anew(&mut scene);
}

/// The group came to gossip on the copy: its revisions are one server's own, and older than nothing.
#[test]
fn what_is_disputed_and_comes_counted_otherwise_is_no_longer_disputed() {
    let mut scene = with_a_snapshot(&["a"]);
    let number = scene.asked_now();
    scene.hear([list_as_of(&["b"], 20, 30), started(number, 30, &[key()])]);
    assert!(scene.state.slot(&key()).disputed);
    // Of equal sign, so no list comes before this.
    scene.hear_of(Counted::Server { epoch: 7 }, [started(number, 3, &[key()])]);
    assert!(!scene.state.slot(&key()).disputed);
    assert_eq!(scene.told(), ["list a", "live"]);
}

/// The same, of another sign.
#[test]
fn what_is_disputed_and_comes_as_a_list_that_is_taken_is_live() {
    let mut scene = with_a_snapshot(&["a"]);
    let number = scene.asked_now();
    scene.hear([list_as_of(&["b"], 20, 30), started(number, 30, &[key()])]);
    let counted = Counted::Server { epoch: 7 };
    scene.hear_of(counted, [list_as_of(&["c"], 2, 3), started(number, 3, &[key()])]);
    assert_eq!(scene.told(), ["list a", "list c", "live"]);
}

/// It is behind where the service went, and says of it what was.
#[test]
fn a_server_that_is_behind_what_went_is_not_asked_anew_for_that() {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    let number = scene.asked_now();
    scene.hear([list(&["a"], 1), started(number, 1, &[key()])]);
    scene.hear([bookmark(80), gone(&key(), 90)]);
    scene.state.on_interrupted("broken");
    scene.state.on_connected();
    let number = scene.asked_now();
    scene.hear([resumed(number, 88, &[key()])]);
    let said = scene.say(super::frames::RESYNC_SPACING);
    assert!(
        !said.iter().any(|one| matches!(one, Request::Subscribe(_))),
        "{said:?}"
    );
}

/// In the copy that the servers were set back to it is there still, and nothing has happened to it since.
#[test]
fn a_service_that_went_and_is_listed_by_a_resumed_watch_is_asked_for() {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    let number = scene.asked_now();
    scene.hear([list(&["a"], 1), started(number, 1, &[key()])]);
    scene.hear([gone(&key(), 90), bookmark(90)]);
    scene.state.on_interrupted("broken");
    scene.state.on_connected();
    let number = scene.asked_now();
    scene.hear([resumed(number, 95, &[key()])]);
    let number = scene.asked(super::frames::RESYNC_SPACING);
    assert!(!scene.told().contains(&"list ".to_owned()));
    scene.hear([list_as_of(&["a"], 1, 95), started(number, 95, &[key()])]);
    assert!(scene.state.slot(&key()).cached.view().exists);
}

/// The service of the new cluster is empty as yet: what is held of the old one stays, and the rest goes on.
#[test]
fn an_empty_service_of_another_cluster_is_asked_for_once() {
    let target = WatchTarget::group("jobs");
    let mut scene = Scene::following(&target);
    let held = ServiceView::from_wire(
        view(&["a"], 700),
        700,
        ("old".into(), Counted::Cluster),
        Confirmed::Never,
    );
    scene.state.slot(&key());
    scene.state.offer(held);
    let number = scene.asked_now();
    scene.hear([list(&[], 2), started(number, 3, &[key()])]);
    let number = scene.asked(super::frames::RESYNC_SPACING);
    scene.hear([list(&[], 2), started(number, 4, &[key()])]);
    assert_eq!(scene.told(), ["list a", "live"]);
    assert_eq!(
        acknowledged(&scene.say(super::frames::RESYNC_SPACING * 2)),
        [4],
        "and nothing is asked for"
    );
    // Its first node is a change that does not fit what is held, so the list is asked for.
    scene.hear([change(&key(), 5, false, &["b"], &["b"])]);
    let number = scene.asked(super::frames::RESYNC_SPACING);
    scene.hear([list(&["b"], 5), started(number, 5, &[key()])]);
    assert_eq!(scene.told(), ["list b", "live"]);
    assert_eq!(acknowledged(&scene.say_now()), [5]);
}

#[test]
fn services_that_come_and_go_leave_nothing_behind() {
    let target = WatchTarget::group("jobs");
    let mut scene = Scene::following(&target);
    let number = scene.asked_now();
    scene.hear([started(number, 1, &[])]);
    for job in 1..=10_000_u64 {
        let key = ServiceKey::new("jobs", job.to_string());
        scene.hear([
            change(&key, 2 * job, true, &["a"], &["a"]),
            gone(&key, 2 * job + 1),
        ]);
        if job % 100 == 0 {
            scene.hear([bookmark(2 * job + 1)]);
        }
        assert!(scene.state.slots.len() <= 100);
    }
    assert!(scene.state.slots.is_empty());
    assert!(scene.state.dirty.is_empty(), "there is no folder");
    let (events, _) = scene.state.add_queue(&target);
    assert!(scene.state.take_event(events).is_none());
}

/// Until a bookmark a resume may bring again what came before the end; that must not bring the service back.
#[test]
fn what_came_before_the_end_of_a_service_is_not_told_again() {
    let mut scene = Scene::following(&WatchTarget::group("jobs"));
    let number = scene.asked_now();
    scene.hear([list(&["a"], 1), started(number, 1, &[key()])]);
    scene.hear([gone(&key(), 9)]);
    assert_eq!(scene.told(), ["list a", "live", "gone"]);
    scene.hear([change(&key(), 5, false, &["b"], &["a", "b"]), gone(&key(), 9)]);
    assert!(scene.told().is_empty());
    scene.hear([bookmark(9)]);
    assert!(scene.state.slots.is_empty());
}

/// Who asked for a service by its name goes on looking at it.
#[test]
fn a_service_that_is_watched_by_name_stays_when_it_is_gone() {
    let mut scene = Scene::following(&WatchTarget::group("jobs"));
    scene.state.want(&WatchTarget::Service(key()));
    let (target, number) = (WatchTarget::Service(key()), scene.say_now().len() as u64);
    scene.hear([
        list(&["a"], 1),
        started(1, 1, &[key()]),
        started(number, 1, &[key()]),
    ]);
    scene.hear([gone(&key(), 2), bookmark(3)]);
    assert_eq!(scene.state.slots.len(), 1);
    let (events, _) = scene.state.add_queue(&target);
    assert!(matches!(
        scene.state.take_event(events),
        Some(WatchEvent::Snapshot { view, .. }) if !view.exists && view.source == Source::Live
    ));
}

#[test]
fn a_folder_is_told_of_a_service_that_is_gone_and_no_longer_held() {
    let mut state = State::new(100, true);
    let target = WatchTarget::group("jobs");
    state.want(&target);
    state.on_connected();
    let mut scene = Scene { state, events: 0 };
    let number = scene.asked_now();
    scene.hear([list(&["a"], 1), started(number, 1, &[key()])]);
    let dirty = scene.state.take_dirty();
    assert!(dirty.len() == 1 && dirty[0].exists);
    scene.hear([gone(&key(), 2), bookmark(3)]);
    assert!(scene.state.slots.is_empty());
    let dirty = scene.state.take_dirty();
    assert!(dirty.len() == 1 && !dirty[0].exists);
}

#[test]
fn dropping_watches_costs_each_its_own_service_alone() {
    let mut state = State::new(100, false);
    let targets: Vec<WatchTarget> = (0..4_000)
        .map(|one| WatchTarget::Service(ServiceKey::new("jobs", one.to_string())))
        .collect();
    let group = WatchTarget::group("jobs/a");
    targets
        .iter()
        .chain([&group])
        .for_each(|target| state.want(target));
    let before = COMPARED.get();
    targets.iter().for_each(|target| state.unwant(target));
    assert!(state.slots.is_empty());
    let compared = COMPARED.get() - before;
    assert!(compared <= targets.len(), "{compared} comparisons");
}

#[test]
fn the_last_watch_takes_with_it_what_nobody_else_follows() {
    let mut state = State::new(100, false);
    let (group, service) = (WatchTarget::group("jobs"), WatchTarget::Service(key()));
    let other = ServiceKey::new("jobs", "other");
    state.want(&group);
    state.want(&service);
    state.slot(&other);
    state.unwant(&service);
    assert_eq!(state.slots.len(), 2, "the group follows both");
    state.want(&service);
    state.unwant(&group);
    assert_eq!(state.slots.keys().collect::<Vec<_>>(), [&key()]);
}

#[test]
fn what_is_refused_when_it_is_asked_for_anew_is_not_live_any_more() {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    let number = scene.asked_now();
    scene.hear([list(&["a"], 5), started(number, 5, &[key()])]);
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Live);
    let later = v1::KeepCache {
        subscription: number,
        retry_after_ms: 0,
    };
    // Another subscription keeps it current meanwhile, and goes.
    let group = WatchTarget::group("jobs");
    scene.state.want(&group);
    let of_group = scene.asked_now();
    scene.hear([started(of_group, 5, &[key()]), Frame::KeepCache(later)]);
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Live);
    scene.hear([Frame::Rejected(v1::Rejected {
        subscription: of_group,
        error: Some(v1::Error::default()),
    })]);
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Cache);
}

fn put_off(subscription: u64) -> Frame {
    Frame::KeepCache(v1::KeepCache {
        subscription,
        retry_after_ms: 600_000,
    })
}

/// What a view says is no younger for what is heard of others.
fn grows_old(scene: &mut Scene, of: &ServiceKey) {
    let source = |scene: &mut Scene| scene.state.slot(of).cached.view().source;
    assert_eq!(source(scene), Source::Cache);
    let other = ServiceKey::new("jobs", "other");
    scene.state.want(&WatchTarget::Service(other.clone()));
    let deadline = Instant::now() + std::time::Duration::from_secs(20);
    let mut revision = 100;
    while scene.state.slot(of).cached.view().age() < Some(std::time::Duration::from_millis(20)) {
        assert!(Instant::now() < deadline, "its age is renewed by others");
        revision += 1;
        scene.hear([change(&other, revision, true, &["x"], &["x"])]);
        std::thread::yield_now();
    }
    assert_eq!(source(scene), Source::Cache);
}

/// One is put off, and the other one goes, which alone kept the service current.
#[test]
fn what_a_dropped_watch_kept_current_is_not_live_while_the_others_wait_for_their_turn() {
    let (group, service) = (WatchTarget::group("jobs"), WatchTarget::Service(key()));
    for (kept, waits) in [(&group, &service), (&service, &group)] {
        let mut scene = Scene::following(kept);
        let number = scene.asked_now();
        scene.hear([list(&["a"], 5), started(number, 5, &[key()])]);
        scene.state.want(waits);
        let number = scene.asked_now();
        scene.hear([put_off(number)]);
        assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Live);
        scene.state.unwant(kept);
        grows_old(&mut scene, &key());
        // What was on its way when the subscription was given up is the last that comes.
        scene.hear([change(&key(), 90, false, &["b"], &["a", "b"])]);
        assert_eq!(ids(scene.state.slot(&key()).cached.view()), "a,b");
        grows_old(&mut scene, &key());
    }
}

#[test]
fn while_a_list_is_asked_for_anew_nothing_of_the_subscription_is_live() {
    let mut scene = Scene::following(&WatchTarget::group("jobs"));
    let quiet = ServiceKey::new("jobs", "quiet");
    let number = scene.asked_now();
    let both = [key(), quiet.clone()];
    scene.hear([
        list(&["a"], 5),
        change(&quiet, 5, true, &["q"], &["q"]),
        started(number, 5, &both),
    ]);
    // A gap, and no answer as yet.
    scene.hear([change(&key(), 9, false, &["c"], &["a", "b", "c"])]);
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Cache);
    grows_old(&mut scene, &quiet);
    let mut said = scene.say_now();
    said.retain(|request| matches!(request, Request::Subscribe(one) if one.after_revision == 0));
    let Some(Request::Subscribe(again)) = said.pop() else {
        panic!("it is asked for")
    };
    scene.hear([list(&["a", "b", "c"], 9), started(again.subscription, 9, &both)]);
    for key in &both {
        assert_eq!(scene.state.slot(key).cached.view().source, Source::Live);
    }

    // A list that should have come and did not.
    let missing = ServiceKey::new("jobs", "missing");
    scene.hear([started(again.subscription, 200, &[key(), quiet.clone(), missing])]);
    grows_old(&mut scene, &quiet);
}

#[test]
fn what_an_operator_may_permit_is_asked_for_again_and_what_is_no_name_is_not() {
    let asked_again = |code: v1::ErrorCode| {
        let mut scene = Scene::following(&WatchTarget::Service(key()));
        let error = v1::Error {
            code: code.into(),
            ..v1::Error::default()
        };
        let rejected = v1::Rejected {
            subscription: scene.asked_now(),
            error: Some(error),
        };
        scene.hear([Frame::Rejected(rejected)]);
        let told = scene.state.slot(&key()).published.subscribe();
        assert!(told.refusal.borrow().is_some(), "whoever waits is told");
        assert!(scene.say(super::frames::REFUSED_PAUSE / 2).is_empty());
        assert_eq!(
            scene.state.ask_at().is_some(),
            code == v1::ErrorCode::NotPermitted
        );
        scene.say(super::frames::REFUSED_PAUSE * 2)
    };
    assert_eq!(asked_again(v1::ErrorCode::NotPermitted).len(), 1);
    assert!(asked_again(v1::ErrorCode::InvalidName).is_empty());
}

#[test]
fn watchers_do_not_wake_for_a_mere_confirmation() {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    let number = scene.asked_now();
    scene.hear([list(&["a"], 5), started(number, 5, &[key()])]);
    let mut shown = scene.state.slot(&key()).published.subscribe();
    scene.hear([started(number, 9, &[key()])]);
    assert!(!shown.view.has_changed().unwrap());
    assert_eq!(shown.view.borrow().as_of, 9, "who looks sees it");
    scene.hear([change(&key(), 10, false, &["b"], &["a", "b"])]);
    assert!(shown.view.has_changed().unwrap());
    assert_eq!(ids(&shown.view.borrow_and_update()), "a,b");
}

fn numbers(said: &[Request]) -> Vec<u64> {
    let asked = said.iter().filter_map(|request| match request {
        Request::Subscribe(subscribe) => Some(subscribe.subscription),
        Request::Unsubscribe(_) | Request::Ack(_) => None,
    });
    asked.collect()
}

/// A server that is cut off hears nothing of CP groups, and goes on with the others.
#[test]
fn what_is_said_of_ap_groups_makes_no_other_younger() {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    scene
        .state
        .want(&WatchTarget::Service(ServiceKey::new("edge", "y")));
    let [of_ap, of_cp] = numbers(&scene.say_now())[..] else {
        panic!("both are asked for")
    };
    let of_server = Counted::Server { epoch: 7 };
    scene.hear([list(&["a"], 5), started(of_cp, 5, &[key()])]);
    scene.hear_of(of_server, [started(of_ap, 1, &[])]);
    let begun = Instant::now();
    let some = std::time::Duration::from_millis(20);
    let mut revision = 1;
    while scene.state.slot(&key()).cached.view().age() < Some(some) {
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(20),
            "its age is renewed by others"
        );
        revision += 1;
        scene.hear_of(of_server, [bookmark(revision)]);
        // No list, and no word on what is current.
        scene.hear([put_off(99)]);
        std::thread::yield_now();
    }
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Live);
    assert!(scene.state.quiet_since().unwrap() <= begun, "it is silent");
    scene.hear([bookmark(6)]);
    assert!(scene.state.quiet_since().unwrap() > begun);
}

/// It answers what it is asked, as of where it stands.
#[test]
fn what_a_server_that_is_cut_off_is_asked_makes_nothing_else_younger() {
    let mut scene = Scene::following(&WatchTarget::Service(key()));
    let number = scene.asked_now();
    scene.hear([list(&["a"], 5), started(number, 5, &[key()])]);
    let other = WatchTarget::Service(ServiceKey::new("jobs", "other"));
    let (begun, some) = (Instant::now(), std::time::Duration::from_millis(20));
    while scene.state.slot(&key()).cached.view().age() < Some(some) {
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(20),
            "its age is renewed by others"
        );
        scene.state.want(&other);
        let number = scene.asked_now();
        scene.hear([started(number, 5, &[])]);
        scene.state.unwant(&other);
        scene.say_now();
        std::thread::yield_now();
    }
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Live);
    assert!(scene.state.quiet_since().unwrap() <= begun);
    scene.hear([bookmark(5)]);
    assert!(
        scene.state.slot(&key()).cached.view().age() < Some(some),
        "it is in touch"
    );
}

/// Nothing of the others is shown, though the prefix would show them.
#[test]
fn silence_about_groups_of_which_nothing_is_shown_is_none() {
    let mut scene = Scene::following(&WatchTarget::group("jobs"));
    let number = scene.asked_now();
    let half = |frame: Frame| match frame {
        Frame::Started(started) => Frame::Started(v1::Started {
            half: true,
            ..started
        }),
        other => other,
    };
    let of_server = Counted::Server { epoch: 7 };
    scene.hear([half(started(number, 5, &[]))]);
    scene.hear_of(of_server, [list(&["a"], 3), half(started(number, 3, &[key()]))]);
    assert_eq!(scene.state.slot(&key()).cached.view().source, Source::Live);
    let before = scene.state.quiet_since().unwrap();
    while Instant::now() <= before {
        std::thread::yield_now();
    }
    scene.hear_of(of_server, [bookmark(4)]);
    assert!(scene.state.quiet_since().unwrap() > before);
}

#[test]
fn what_waits_for_its_turn_keeps_nothing_else_from_being_acknowledged() {
    for refused in [false, true] {
        let other = ServiceKey::new("jobs", "t");
        let mut scene = Scene::following(&WatchTarget::Service(key()));
        scene.state.want(&WatchTarget::Service(other.clone()));
        let [first, second] = numbers(&scene.say_now())[..] else {
            panic!("both are asked for")
        };
        scene.hear([list(&["a"], 5), started(first, 5, &[key()])]);
        let there = [other.clone()];
        scene.hear([
            change(&other, 5, true, &["x"], &["x"]),
            started(second, 5, &there),
        ]);
        scene.say_now();
        scene.hear([change(&other, 9, false, &["z"], &["x", "y", "z"])]);
        let [again] = numbers(&scene.say_now())[..] else {
            panic!("it is asked for anew")
        };
        let answer = match refused {
            false => put_off(again),
            true => Frame::Rejected(v1::Rejected {
                subscription: again,
                error: Some(v1::Error {
                    code: v1::ErrorCode::NotPermitted.into(),
                    ..v1::Error::default()
                }),
            }),
        };
        scene.hear([change(&key(), 49, false, &["b"], &["a", "b"]), bookmark(49)]);
        assert_eq!(acknowledged(&scene.say_now()), [0; 0], "a list is on its way");
        scene.hear([answer]);
        assert_eq!(acknowledged(&scene.say_now()), [49]);
    }
}
