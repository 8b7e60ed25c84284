//! Real namespaces and real sockets. Without root these say so and pass.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A UDP socket on a host; `recv` waits for `wait` at most.
fn udp(net: &Net, host: u64, wait: Duration) -> (UdpSocket, SocketAddr) {
    let socket = net
        .inside(host, || UdpSocket::bind((net.address(host), 0)))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(wait)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn passes(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send_to(b"frame", to.local_addr().unwrap()).unwrap();
    to.recv(&mut [0; 16]).is_ok()
}

#[test]
fn hosts_reach_each_other_and_the_test_and_everything_is_gone_afterwards() {
    let Some(net) = Net::start_or_skip(3, 1) else {
        return;
    };
    let namespaces: Vec<String> = (1..=3).map(|host| net.plan.namespace_path(host)).collect();
    assert!(namespaces.iter().all(|path| Path::new(path).exists()));
    let listener = net
        .inside(1, || TcpListener::bind((net.address(1), 7_400)))
        .unwrap()
        .unwrap();
    let address = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut content = Vec::new();
            stream.read_to_end(&mut content).unwrap();
            stream.write_all(&content).unwrap();
        }
    });
    // More than a window, so that many full frames pass.
    let content: Vec<u8> = (0..300_000_u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    for host in [2, HARNESS] {
        let mut stream = net
            .inside(host, || TcpStream::connect_timeout(&address, SOON))
            .unwrap()
            .unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sent = content.clone();
        std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut echoed = Vec::new();
        stream.read_to_end(&mut echoed).unwrap();
        assert_eq!(echoed.len(), content.len());
        assert_eq!(echoed, content);
        assert!(net.bytes(host, 1) > 300_000 && net.bytes(1, host) > 300_000);
    }
    echo.join().unwrap();
    assert!(net.port_traffic(1, Protocol::Tcp, 7_400).bytes > 600_000);
    assert_eq!(net.bytes(3, 1), 0);
    drop(net);
    assert!(namespaces.iter().all(|path| !Path::new(path).exists()));
}

#[test]
fn partitions_are_silent_one_way_if_told_and_heal() {
    let Some(net) = Net::start_or_skip(3, 1) else {
        return;
    };
    let wait = Duration::from_millis(200);
    let (one, _) = udp(&net, 1, wait);
    let (two, _) = udp(&net, 2, wait);
    let (three, _) = udp(&net, 3, wait);
    let (test, _) = udp(&net, HARNESS, wait);
    assert!(passes(&one, &two) && passes(&two, &one) && passes(&test, &one));
    let cut = net.partition(&[1], &[2, 3]);
    assert!(!passes(&one, &two) && !passes(&three, &one));
    assert!(passes(&two, &three) && passes(&test, &one) && passes(&one, &test));
    net.one_way(2, 3);
    net.lift(cut);
    assert!(passes(&one, &two) && !passes(&two, &three) && passes(&three, &two));
    net.isolate(1, true);
    assert!(!passes(&test, &one) && !passes(&one, &three));
    net.heal();
    assert!(passes(&two, &three) && passes(&test, &one) && passes(&one, &three));
    assert!(net.traffic(2, 3).cut.frames >= 1);
}

#[test]
fn delay_and_loss_are_as_told() {
    let Some(net) = Net::start_or_skip(2, 4) else {
        return;
    };
    let (one, _) = udp(&net, 1, Duration::from_millis(100));
    let (two, _) = udp(&net, 2, SOON);
    net.link(1, 2)
        .delay(Duration::from_millis(60))
        .jitter(Duration::from_millis(20));
    let started = Instant::now();
    assert!(passes(&one, &two));
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(60), "{took:?}");
    let started = Instant::now();
    assert!(passes(&two, &one), "the other direction has no delay");
    assert!(started.elapsed() < Duration::from_millis(60));
    net.heal();
    net.between(1, 2).loss(0.3);
    two.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let arrived = (0..300).filter(|_| passes(&one, &two)).count();
    assert!((160..260).contains(&arrived), "{arrived} of 300 at 30 % loss");
}

#[test]
fn a_dead_owner_is_cleaned_up_after() {
    let Some(net) = Net::start_or_skip(1, 1) else {
        return;
    };
    let name = net.plan.namespace_path(1);
    // As after a crash: nobody undoes anything, and the lock goes.
    let Fabric::Namespaces { wire, _claim: claim } = net.fabric else {
        unreachable!("it was started with namespaces");
    };
    drop(wire);
    claim.abandon();
    let identity = |name: &str| std::fs::metadata(name).map(|namespace| namespace.ino()).ok();
    let abandoned = identity(&name);
    // A sweep comes with every start. Somebody else's may have come by now, and have taken the number again.
    let _next = Net::start(1).unwrap();
    assert!(abandoned.is_none() || identity(&name) != abandoned);
}
