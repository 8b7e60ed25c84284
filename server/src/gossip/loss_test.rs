//! Thirty members in simulated time, over a network that loses packets, some of them asleep now and then.

use std::time::Duration;

use rand::Rng;

use super::simulation::Network;
use crate::config::GossipPreset;

const MEMBERS: u64 = 30;

fn joined() -> Network {
    let mut network = Network::new(MEMBERS, GossipPreset::Lan, rand::random());
    network.join();
    network.loss = 0.1;
    network
}

#[test]
fn with_a_tenth_of_the_packets_lost_and_sleepers_nobody_is_falsely_down() {
    let mut network = joined();
    let end = network.now + Duration::from_secs(20 * 60);
    while network.now < end {
        // Each second one of the members in twenty falls asleep for less than the suspicion.
        for id in 1..=MEMBERS {
            if network.random.random_bool(0.05 * 0.05) && !network.asleep.contains_key(&id) {
                let nap = Duration::from_millis(network.random.random_range(100..2_500));
                network.asleep.insert(id, network.now + nap);
            }
        }
        network.step();
    }
    assert_eq!(network.downs, []);
}

#[test]
fn a_death_is_known_to_all_within_the_bound_although_packets_are_lost() {
    let mut network = joined();
    let mut times = Vec::new();
    for victim in 1..=20 {
        network.run(Duration::from_secs(5));
        times.push(network.kill(victim, Duration::from_secs(30)));
    }
    times.sort_unstable();
    println!(
        "20 deaths of {MEMBERS}, known to all after: median {:?}, slowest {:?}",
        times[10], times[19]
    );
    assert!(times[19] < Duration::from_secs(20), "{times:?}");
    let dead = network.dead.clone();
    assert!(
        network.downs.iter().all(|down| dead.contains(&down.who)),
        "a living one was declared down"
    );
}
