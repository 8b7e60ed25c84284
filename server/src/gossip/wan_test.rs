//! The `wan` preset in simulated time: nine members in three datacenters, 100 to 150 ms and a few lost packets apart.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

use super::simulation::Network;
use crate::config::GossipPreset;

const MEMBERS: u64 = 9;
/// What the documentation says: a death is known to all within this.
const DETECTION_MAX: Duration = Duration::from_secs(40);

/// One way: half a millisecond within a datacenter, 50 to 75 between two, a tenth of the packets up to twice that.
fn far_apart(from: u64, to: u64, random: &mut StdRng) -> Duration {
    let usual = match (from % 3, to % 3) {
        (a, b) if a == b => 500,
        (0, 1) | (1, 0) => 50_000,
        (1, 2) | (2, 1) => 60_000,
        _ => 75_000,
    };
    let late = if random.random_bool(0.1) {
        usual
    } else {
        usual / 10
    };
    Duration::from_micros(usual + random.random_range(0..=late))
}

fn joined(loss: f64) -> Network {
    let mut network = Network::new(MEMBERS, GossipPreset::Wan, rand::random());
    network.delay = far_apart;
    network.join();
    network.loss = loss;
    network
}

/// How many members were found down in so much time, and how many suspicions there were.
fn quiet(loss: f64, time: Duration) -> (usize, u64) {
    let mut network = joined(loss);
    let since = Instant::now();
    network.run(time);
    println!(
        "{:.0} % lost, {} h: {} down, {} suspicions, in {:?}",
        loss * 100.0,
        time.as_secs() / 3_600,
        network.downs.len(),
        network.suspicions,
        since.elapsed()
    );
    (network.downs.len(), network.suspicions)
}

/// Deaths one after the other, each followed by a restart.
fn deaths(loss: f64, count: u64) -> Vec<Duration> {
    let mut network = joined(loss);
    let mut times = Vec::new();
    for turn in 0..count {
        let victim = 1 + turn % MEMBERS;
        let pause = Duration::from_millis(network.random.random_range(1_000..8_000));
        network.run(pause);
        times.push(network.kill(victim, Duration::from_secs(120)));
        network.start(victim);
        network.announce(victim, 1 + victim % MEMBERS);
        network.run_until("it is back", Duration::from_secs(120), Network::all_see_all);
    }
    let falsely = network.downs.len() as u64 - count * (MEMBERS - 1);
    times.sort_unstable();
    println!(
        "{:.0} % lost, {count} deaths known to all after: median {:?}, slowest {:?}; {falsely} false",
        loss * 100.0,
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert_eq!(falsely, 0);
    times
}

#[test]
fn over_a_wide_area_nobody_is_falsely_down_for_an_hour() {
    for loss in [0.02, 0.05] {
        let (downs, _) = quiet(loss, Duration::from_secs(3_600));
        assert_eq!(downs, 0, "{loss}");
    }
}

#[test]
fn over_a_wide_area_a_death_is_known_within_the_bound() {
    for loss in [0.02, 0.05] {
        let times = deaths(loss, 9);
        assert!(*times.last().unwrap() < DETECTION_MAX, "{loss}: {times:?}");
    }
}

/// `cargo test --release -p rollcall-server gossip::wan -- --ignored --nocapture`
#[test]
#[ignore = "minutes: the figures of the documentation"]
fn figures_over_a_wide_area() {
    for loss in [0.02, 0.05, 0.1] {
        let (downs, _) = quiet(loss, Duration::from_secs(24 * 3_600));
        assert_eq!(downs, 0, "{loss}");
        deaths(loss, 90);
    }
}
