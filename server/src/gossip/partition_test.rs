//! Networks that work in one direction only, in simulated time: nobody flaps, and all heal.

use std::time::Duration;

use super::simulation::Network;
use super::swim::MemberState;
use crate::config::GossipPreset;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn joined(members: u64) -> Network {
    let mut network = Network::new(members, GossipPreset::Lan, rand::random());
    network.join();
    network
}

fn heal(network: &mut Network) {
    network.blocked.clear();
    let took = network.run_until("all see all", 2 * MINUTE, Network::all_see_all);
    println!("healed after {took:?}, epochs {:?}", network.epochs);
}

/// Whether `by` holds `who` down.
fn holds_down(network: &Network, by: u64, who: u64) -> bool {
    network.swims[&by]
        .members()
        .any(|view| view.identity.server.0 == who && view.state == MemberState::Down)
}

/// A seed may be a name, a balancer or a mapped port: not what its server tells the members.
#[test]
fn a_seed_at_another_address_than_it_tells_lets_in() {
    let mut network = Network::new(2, GossipPreset::Lan, rand::random());
    network.announce_to_alias(2, 1);
    network.run_until("all see all", 5 * SECOND, Network::all_see_all);
}

#[test]
fn of_five_one_that_does_not_hear_another_is_helped_by_the_rest() {
    let mut network = joined(5);
    network.block(&[1], &[2]);
    network.run(10 * MINUTE);
    assert_eq!(network.downs, []);
    assert!(network.epochs.values().all(|epoch| *epoch == 1));
}

/// Whoever hears nobody must not have the last word on those that everybody else hears.
#[test]
fn a_deaf_member_is_down_and_takes_nobody_along() {
    for _ in 0..20 {
        let mut network = joined(5);
        network.block(&[1, 2, 3, 4], &[5]);
        let all_know = |network: &Network| (1..=4).all(|by| holds_down(network, by, 5));
        let took = network.run_until("5 is down on the others", 20 * SECOND, all_know);
        println!("the deaf one is down after {took:?}");
        network.run(10 * MINUTE);
        let wrong: Vec<_> = network
            .downs
            .iter()
            .filter(|down| down.by != 5 && down.who != 5)
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(
            (1..=4).all(|who| holds_down(&network, 5, who)),
            "it must not take those that it does not hear for alive"
        );
        assert_eq!(network.epochs[&5], 1, "it was told by nobody");
        let before = network.downs.len();
        heal(&mut network);
        network.run(MINUTE);
        assert_eq!(network.downs[before..], [], "its return harmed others");
        assert!((1..=4).all(|id| network.epochs[&id] == 1), "{:?}", network.epochs);
    }
}

#[test]
fn a_mute_member_is_down_and_does_not_flap() {
    for _ in 0..10 {
        let mut network = joined(5);
        network.block(&[5], &[1, 2, 3, 4]);
        network.run(10 * MINUTE);
        for by in 1..=4 {
            assert!(holds_down(&network, by, 5));
            let times = network.downs.iter().filter(|down| (down.by, down.who) == (by, 5));
            assert_eq!(times.count(), 1, "it went up and down for {by}");
        }
        assert!(
            network.downs.iter().all(|down| down.by == 5 || down.who == 5),
            "{:?}",
            network.downs
        );
        assert!(
            network.epochs[&5] <= 4,
            "it began life after life: {:?}",
            network.epochs
        );
        heal(&mut network);
    }
}

#[test]
fn two_members_of_which_one_is_deaf_settle_and_heal() {
    for _ in 0..10 {
        let mut network = joined(2);
        network.block(&[1], &[2]);
        network.run(10 * MINUTE);
        let (lives, downs) = (network.epochs.clone(), network.downs.len());
        network.run(10 * MINUTE);
        assert_eq!(network.epochs, lives, "they flap");
        assert_eq!(network.downs.len(), downs, "they flap");
        assert!(lives.values().all(|epoch| *epoch <= 4), "{lives:?}");
        heal(&mut network);
    }
}

/// Both sides go on by themselves, each takes the other for down, and they come together again.
#[test]
fn two_sides_that_do_not_hear_each_other_come_together_again() {
    for _ in 0..10 {
        let mut network = joined(5);
        network.block(&[1, 2], &[3, 4, 5]);
        network.block(&[3, 4, 5], &[1, 2]);
        network.run(5 * MINUTE);
        for (by, who) in [(1, 3), (1, 4), (2, 5), (3, 1), (4, 2), (5, 1)] {
            assert!(holds_down(&network, by, who), "{by} {who}");
        }
        let lives = network.epochs.clone();
        assert!(lives.values().all(|epoch| *epoch == 1), "{lives:?}");
        heal(&mut network);
        network.run(MINUTE);
        assert!(network.all_see_all());
        assert!(
            network.epochs.values().all(|epoch| *epoch <= 3),
            "{:?}",
            network.epochs
        );
    }
}

/// A link that comes and goes in one direction, faster than a suspicion lasts.
#[test]
fn a_link_that_flickers_in_one_direction_harms_nobody() {
    let mut network = joined(5);
    for turn in 0..120_u32 {
        match turn % 2 {
            0 => network.block(&[3], &[1, 2]),
            _ => network.blocked.clear(),
        }
        network.run(3 * SECOND);
    }
    assert_eq!(network.downs, []);
    heal(&mut network);
}
