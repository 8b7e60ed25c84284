use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::net::{Net, Protocol, Quality};

const SOON: Duration = Duration::from_secs(10);
const HELD: Duration = Duration::from_millis(150);

/// Servers 1 and 2 and a host of clients, 3. This process stands for server 2.
fn net() -> Net {
    let net = Net::start_on_loopback(2, 1, 1).unwrap();
    net.note_process(2, std::process::id());
    net
}

/// A connection through the proxy: who dialled, and who was dialled.
fn joined(listener: &TcpListener, dial: &str) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(dial).unwrap();
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    (near, far)
}

fn hears(stream: &mut TcpStream, wanted: &[u8]) {
    let mut heard = vec![0; wanted.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, wanted);
}

fn hears_nothing(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(HELD)).unwrap();
    let heard = stream.read(&mut [0; 64]);
    let waits = |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    assert!(heard.as_ref().is_err_and(waits), "{heard:?}");
    stream.set_read_timeout(Some(SOON)).unwrap();
}

#[test]
fn a_cut_one_way_holds_back_bytes_and_the_end_of_a_connection_and_the_other_way_passes() {
    let net = net();
    let place = net.place(1).unwrap().clone();
    let listener = TcpListener::bind(&place.peer).unwrap();
    let (mut near, mut far) = joined(&listener, &place.told);
    near.write_all(b"before").unwrap();
    hears(&mut far, b"before");

    let cut = net.impose(&[(2, 1)], Quality::cut());
    near.write_all(b"held").unwrap();
    hears_nothing(&mut far);
    far.write_all(b"back").unwrap();
    hears(&mut near, b"back");
    drop(near);
    hears_nothing(&mut far);
    assert!(net.traffic(2, 1).cut.frames >= 1);
    assert!(net.lift(cut));
    hears(&mut far, b"held");
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0, "and then its end");
}

#[test]
fn a_connection_across_a_cut_comes_about_when_it_is_healed() {
    let net = net();
    let place = net.place(1).unwrap().clone();
    let listener = TcpListener::bind(&place.client).unwrap();
    listener.set_nonblocking(true).unwrap();
    let dial = net.dialled_from(3, &place.client);
    assert_ne!(dial, place.client);
    // The answer would not get through.
    net.impose(&[(1, 3)], Quality::cut());
    let mut near = TcpStream::connect(&dial).unwrap();
    near.write_all(b"x").unwrap();
    std::thread::sleep(HELD);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    net.heal();
    listener.set_nonblocking(false).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    hears(&mut far, b"x");
}

#[test]
fn links_are_slow_and_narrow_as_they_are_told() {
    let net = net();
    let place = net.place(1).unwrap().clone();
    let listener = TcpListener::bind(&place.peer).unwrap();
    let (mut near, mut far) = joined(&listener, &place.told);
    net.between(1, 2).delay(Duration::from_millis(60));
    let sent = Instant::now();
    near.write_all(b"there").unwrap();
    hears(&mut far, b"there");
    assert!(sent.elapsed() >= Duration::from_millis(60));
    net.heal();

    net.link(2, 1).bandwidth(200_000);
    let sent = Instant::now();
    let much = vec![7; 100_000];
    near.write_all(&much).unwrap();
    hears(&mut far, &much);
    assert!(
        sent.elapsed() >= Duration::from_millis(400),
        "{:?}",
        sent.elapsed()
    );
    assert!(net.port_traffic(2, Protocol::Tcp, 7401).bytes >= 100_000);
}

#[test]
fn a_sender_that_nobody_hears_is_slowed_down_and_nothing_grows_without_bound() {
    let net = net();
    let place = net.place(1).unwrap().clone();
    let listener = TcpListener::bind(&place.peer).unwrap();
    let (mut near, mut far) = joined(&listener, &place.told);
    let cut = net.impose(&[(2, 1)], Quality::cut());
    near.set_write_timeout(Some(HELD)).unwrap();
    let piece = vec![7; 1 << 20];
    let mut sent = 0;
    while sent < 64 << 20 {
        match near.write(&piece) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    assert!(
        sent < 64 << 20,
        "{sent} bytes were taken from a sender that is cut off"
    );
    net.lift(cut);
    let mut heard = vec![0; sent];
    far.read_exact(&mut heard).unwrap();
}

#[test]
fn connections_break_off_when_told_to_and_when_nobody_listens() {
    let net = net();
    let place = net.place(1).unwrap().clone();
    let listener = TcpListener::bind(&place.peer).unwrap();
    let (mut near, mut far) = joined(&listener, &place.told);
    near.write_all(b"x").unwrap();
    hears(&mut far, b"x");
    assert_eq!(net.reset(&[(1, 3)]), Some(0));
    assert_eq!(net.reset(&[(1, 2)]), Some(1));
    for stream in [&mut near, &mut far] {
        assert_eq!(
            stream.read(&mut [0; 1]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
    }
    drop(listener);
    let mut refused = TcpStream::connect(&place.told).unwrap();
    refused.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(
        refused.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn datagrams_come_from_where_their_sender_is_told_to_be_and_are_cut_and_counted() {
    let net = net();
    let (one, two) = (net.place(1).unwrap().clone(), net.place(2).unwrap().clone());
    let first = UdpSocket::bind(&one.peer).unwrap();
    let second = UdpSocket::bind(&two.peer).unwrap();
    second.set_read_timeout(Some(SOON)).unwrap();
    let mut heard = [0; 16];
    first.send_to(b"hello", &two.told).unwrap();
    let (bytes, from) = second.recv_from(&mut heard).unwrap();
    assert_eq!(
        (&heard[..bytes], from.to_string()),
        (&b"hello"[..], one.told.clone())
    );

    let cut = net.cut_port(&[1], &[2], Protocol::Udp, 7401);
    first.send_to(b"lost", &two.told).unwrap();
    second.set_read_timeout(Some(HELD)).unwrap();
    assert!(second.recv_from(&mut heard).is_err());
    assert_eq!(net.traffic(1, 2).cut.frames, 1);
    net.lift(cut);
    first.send_to(b"again", &two.told).unwrap();
    second.set_read_timeout(Some(SOON)).unwrap();
    let (bytes, _) = second.recv_from(&mut heard).unwrap();
    assert_eq!(&heard[..bytes], b"again");
    // Strangers are nobody.
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"stranger", &two.told).unwrap();
    second.set_read_timeout(Some(HELD)).unwrap();
    assert!(second.recv_from(&mut heard).is_err());
}
