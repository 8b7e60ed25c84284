use std::num::NonZeroU64;

use super::*;
use crate::net::frame::sample;

const MACS: [Mac; 3] = [[2, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const LATE: Duration = Duration::from_secs(3_600);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn switch(seed: u64) -> Switch {
    Switch::new(MACS.to_vec(), seed)
}

/// A frame from port 0 to port 1 that carries its number.
fn numbered(number: u16) -> Vec<u8> {
    sample(MACS[1], Protocol::Tcp, 40_000 + number, 7_400, 100)
}

/// Read from its place, since the frame may be damaged.
fn number(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]]).wrapping_sub(40_000)
}

/// Sends `frames` frames, one each millisecond, and gives back when which arrived.
fn run(switch: &mut Switch, frames: u16) -> Vec<(Duration, u16)> {
    let mut arrived = Vec::new();
    for sent in 0..frames {
        switch.accept(0, numbered(sent), ms(u64::from(sent)));
    }
    while let Some(due) = switch.next_due() {
        if let Some((from, to, frame)) = switch.take_due(due) {
            assert_eq!((from, to), (0, 1));
            arrived.push((due, number(&frame)));
        }
    }
    arrived
}

#[test]
fn a_good_link_delivers_everything_at_once_and_in_order() {
    let mut switch = switch(1);
    let arrived = run(&mut switch, 100);
    let expected: Vec<_> = (0..100).map(|sent| (ms(u64::from(sent)), sent)).collect();
    assert_eq!(arrived, expected);
    let traffic = switch.traffic(0, 1);
    assert_eq!(traffic.sent, traffic.delivered);
    assert_eq!(traffic.sent.frames, 100);
    assert_eq!(switch.port(0, 1, Protocol::Tcp, 7_400), traffic.sent);
    assert_eq!(switch.traffic(1, 0), Traffic::default());
}

#[test]
fn the_same_seed_fares_the_same_and_another_does_not() {
    let rough = |seed| {
        let mut switch = switch(seed);
        switch.set_base(0, 1, |of| {
            of.loss = 0.2;
            of.duplicate = 0.1;
            of.corrupt = 0.1;
            of.reorder = 0.1;
            of.delay = ms(20);
            of.jitter = ms(10);
        });
        run(&mut switch, 500)
    };
    assert_eq!(rough(7), rough(7));
    assert_ne!(rough(7), rough(8));
}

#[test]
fn what_one_link_does_to_its_frames_does_not_depend_on_other_links() {
    let alone = {
        let mut switch = switch(3);
        switch.set_base(0, 1, |of| of.loss = 0.5);
        run(&mut switch, 200)
    };
    let mut switch = switch(3);
    switch.set_base(0, 1, |of| of.loss = 0.5);
    switch.set_base(2, 0, |of| of.loss = 0.5);
    for _ in 0..77 {
        switch.accept(2, sample(MACS[0], Protocol::Udp, 1, 2, 3), Duration::ZERO);
    }
    while switch.take_due(Duration::ZERO).is_some() {}
    assert_eq!(run(&mut switch, 200), alone);
}

#[test]
fn loss_and_repeats_have_their_share() {
    let mut switch = switch(5);
    switch.set_base(0, 1, |of| {
        of.loss = 0.25;
        of.duplicate = 0.5;
    });
    let arrived = run(&mut switch, 4_000).len();
    let traffic = switch.traffic(0, 1);
    assert!((900..1_100).contains(&traffic.lost.frames), "{traffic:?}");
    assert!((1_400..1_600).contains(&traffic.duplicated.frames), "{traffic:?}");
    assert_eq!(
        traffic.sent.frames - traffic.lost.frames + traffic.duplicated.frames,
        arrived as u64
    );
}

#[test]
fn jitter_keeps_the_order_and_reordering_does_not() {
    let mut switch = switch(9);
    switch.set_base(0, 1, |of| {
        of.delay = ms(30);
        of.jitter = ms(20);
    });
    let arrived = run(&mut switch, 300);
    assert!(arrived.is_sorted_by_key(|(_, number)| *number));
    for (due, number) in &arrived {
        let took = *due - ms(u64::from(*number));
        assert!(took >= ms(30) && took < ms(50), "frame {number} took {took:?}");
    }
    switch.heal();
    switch.set_base(0, 1, |of| of.reorder = 0.2);
    let mut later = Vec::new();
    for sent in 0..300 {
        switch.accept(0, numbered(sent), LATE + ms(u64::from(sent)));
    }
    while let Some((_, _, frame)) = switch.take_due(LATE * 2) {
        later.push(number(&frame));
    }
    assert_eq!(later.len(), 300);
    assert!(!later.is_sorted());
    assert!(switch.traffic(0, 1).reordered.frames > 30);
}

#[test]
fn a_flipped_bit_is_behind_the_addresses() {
    let mut switch = switch(2);
    switch.set_base(0, 1, |of| of.corrupt = 1.0);
    for _ in 0..200 {
        switch.accept(0, numbered(1), Duration::ZERO);
        let (_, _, frame) = switch.take_due(Duration::ZERO).unwrap();
        let flipped: u32 = frame
            .iter()
            .zip(numbered(1))
            .map(|(one, two)| (one ^ two).count_ones())
            .sum();
        assert_eq!(flipped, 1);
        assert_eq!(
            frame[..frame::ETHERNET_HEADER],
            numbered(1)[..frame::ETHERNET_HEADER]
        );
    }
}

#[test]
fn bandwidth_spaces_frames_and_its_queue_is_bounded() {
    let mut switch = switch(2);
    let bytes = numbered(0).len() as u64;
    // Ten frames per second.
    switch.set_base(0, 1, |of| of.bandwidth = NonZeroU64::new(bytes * 10));
    for sent in 0..10 {
        switch.accept(0, numbered(sent), Duration::ZERO);
    }
    let mut dues = Vec::new();
    while let Some(due) = switch.next_due() {
        switch.take_due(due).unwrap();
        dues.push(due);
    }
    assert_eq!(dues, [ms(100), ms(200), ms(300)]);
    assert_eq!(switch.traffic(0, 1).overflowed.frames, 7);
}

#[test]
fn a_link_holds_a_bounded_number_of_bytes() {
    let mut switch = switch(2);
    switch.set_base(0, 1, |of| of.delay = LATE);
    let frames = QUEUE_BYTES_MAX / numbered(0).len() + 50;
    for _ in 0..frames {
        switch.accept(0, numbered(1), Duration::ZERO);
    }
    assert!(switch.traffic(0, 1).overflowed.frames >= 50);
    while switch.take_due(LATE * 2).is_some() {}
    // Room again.
    switch.accept(0, numbered(1), LATE * 2);
    assert!(switch.next_due().is_some());
}

#[test]
fn a_cut_stops_what_is_under_way_too_and_lifting_one_leaves_the_other() {
    let mut switch = switch(2);
    switch.set_base(0, 1, |of| of.delay = ms(10));
    switch.accept(0, numbered(1), Duration::ZERO);
    let one = switch.impose(vec![(0, 1), (1, 0)], Quality::cut());
    let two = switch.impose(vec![(0, 1)], Quality::cut_port(Protocol::Tcp, 7_400));
    assert_eq!(switch.take_due(ms(20)), None);
    assert!(switch.lift(one));
    assert!(!switch.lift(one));
    switch.accept(0, numbered(2), ms(20));
    switch.accept(0, sample(MACS[1], Protocol::Tcp, 40_000, 7_401, 0), ms(20));
    let (_, _, other_port) = switch.take_due(LATE).unwrap();
    assert_eq!(frame::ports(&other_port), Some((Protocol::Tcp, 40_000, 7_401)));
    assert_eq!(switch.take_due(LATE), None);
    assert!(switch.lift(two));
    switch.accept(0, numbered(3), LATE);
    assert!(switch.take_due(LATE * 2).is_some());
    assert_eq!(switch.traffic(0, 1).cut.frames, 2);
}

#[test]
fn frames_to_nobody_are_dropped() {
    let mut switch = switch(2);
    switch.accept(0, sample([0xff; 6], Protocol::Udp, 1, 2, 3), Duration::ZERO);
    switch.accept(0, sample(MACS[0], Protocol::Udp, 1, 2, 3), Duration::ZERO);
    switch.accept(0, vec![2, 0, 0], Duration::ZERO);
    assert_eq!(switch.next_due(), None);
}
