//! Many datagrams with one call of the system, in and out.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use rollcall_proto::heartbeat::DATAGRAM_BYTES_MAX;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

/// Most datagrams of one call.
pub(super) const BATCH: usize = 64;
/// A byte more than the longest of ours, so that a longer one shows.
const ROOM: usize = DATAGRAM_BYTES_MAX + 1;

/// Room for what comes in.
pub(super) struct Inbox {
    bytes: Vec<u8>,
    headers: MultiHeaders<SockaddrStorage>,
    arrived: Vec<(SocketAddr, usize)>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH * ROOM],
            headers: MultiHeaders::preallocate(BATCH, None),
            arrived: Vec::with_capacity(BATCH),
        }
    }

    /// Waits for datagrams, as long as the socket's timeout allows, and takes all that are there, up to [`BATCH`].
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> std::io::Result<()> {
        self.arrived.clear();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = self
            .bytes
            .chunks_exact_mut(ROOM)
            .map(|room| [IoSliceMut::new(room)])
            .collect();
        let received = recvmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            slices.iter_mut(),
            MsgFlags::MSG_WAITFORONE,
            None,
        )?;
        for message in received {
            // Of a sender without an address there is nobody to answer; an empty datagram is refused for its length.
            let from = message.address.as_ref().and_then(address);
            let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
            let length = if from.is_some() { message.bytes } else { 0 };
            self.arrived.push((from.unwrap_or(nobody), length));
        }
        Ok(())
    }

    /// What came, and from whom.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.arrived
            .iter()
            .zip(self.bytes.chunks_exact(ROOM))
            .map(|((from, length), room)| (*from, &room[..(*length).min(ROOM)]))
    }

    pub(super) fn len(&self) -> usize {
        self.arrived.len()
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(address) = storage.as_sockaddr_in() {
        Some(SocketAddrV4::from(*address).into())
    } else {
        storage
            .as_sockaddr_in6()
            .map(|address| SocketAddrV6::from(*address).into())
    }
}

/// What goes out.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// All datagrams, one behind the other.
    pub(super) bytes: Vec<u8>,
    spans: Vec<(SocketAddr, Range<usize>)>,
}

impl Outbox {
    /// What was appended to `bytes` since `start` is a datagram to this address.
    pub(super) fn seal(&mut self, to: SocketAddr, start: usize) {
        self.spans.push((to, start..self.bytes.len()));
    }

    /// Sends everything, without waiting; how many could not be sent. Empty afterwards.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> usize {
        let mut unsent = 0;
        for spans in self.spans.chunks(BATCH) {
            unsent += send_batch(socket, &self.bytes, spans);
        }
        self.spans.clear();
        self.bytes.clear();
        unsent
    }
}

fn send_batch(socket: &UdpSocket, bytes: &[u8], spans: &[(SocketAddr, Range<usize>)]) -> usize {
    let addresses: Vec<SocketAddrAny> = spans.iter().map(|(to, _)| SocketAddrAny::from(*to)).collect();
    let slices: Vec<[IoSlice<'_>; 1]> = spans
        .iter()
        .map(|(_, span)| [IoSlice::new(&bytes[span.clone()])])
        .collect();
    let mut nothing: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        spans.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<MMsgHdr<'_>> = addresses
        .iter()
        .zip(&slices)
        .zip(&mut nothing)
        .map(|((address, slice), nothing)| MMsgHdr::new_with_addr(address, slice, nothing))
        .collect();
    let mut rest = messages.as_mut_slice();
    let mut unsent = 0;
    while !rest.is_empty() {
        match sendmmsg(socket, rest, SendFlags::DONTWAIT) {
            Ok(sent) => rest = &mut rest[sent.max(1)..],
            Err(rustix::io::Errno::INTR) => {}
            // No room in the system: the others would find none either.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => return unsent + rest.len(),
            // This one cannot be reached, or an earlier one could not.
            Err(_) => {
                unsent += 1;
                rest = &mut rest[1..];
            }
        }
    }
    unsent
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (one, other) = (bind(), bind());
        one.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        (one, other)
    }

    #[test]
    fn many_go_out_and_come_in_as_they_were() {
        let (receiver, sender) = pair();
        let to = receiver.local_addr().unwrap();
        let mut outbox = Outbox::default();
        for number in 0..100_u8 {
            let start = outbox.bytes.len();
            outbox
                .bytes
                .extend(std::iter::repeat_n(number, usize::from(number) + 1));
            outbox.seal(to, start);
        }
        assert_eq!(outbox.send(&sender), 0);
        let mut inbox = Inbox::new();
        let mut came = Vec::new();
        while came.len() < 100 {
            inbox.receive(&receiver).unwrap();
            assert!(inbox.len() <= BATCH);
            came.extend(inbox.datagrams().map(|(from, bytes)| (from, bytes.to_vec())));
        }
        for (number, (from, bytes)) in came.iter().enumerate() {
            assert_eq!(*from, sender.local_addr().unwrap());
            assert_eq!(bytes, &vec![number as u8; number + 1]);
        }
        assert!(
            inbox.receive(&receiver).is_err(),
            "nothing more within the timeout"
        );
        assert_eq!(inbox.datagrams().count(), 0);
    }

    #[test]
    fn what_is_too_long_shows() {
        let (receiver, sender) = pair();
        let long = vec![7; DATAGRAM_BYTES_MAX + 500];
        sender.send_to(&long, receiver.local_addr().unwrap()).unwrap();
        let mut inbox = Inbox::new();
        inbox.receive(&receiver).unwrap();
        let lengths: Vec<_> = inbox.datagrams().map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(lengths, [DATAGRAM_BYTES_MAX + 1]);
    }

    #[test]
    fn one_that_cannot_be_sent_holds_up_no_other() {
        let (receiver, sender) = pair();
        let mut outbox = Outbox::default();
        for to in [
            receiver.local_addr().unwrap(),
            "127.0.0.1:0".parse().unwrap(),
            receiver.local_addr().unwrap(),
        ] {
            let start = outbox.bytes.len();
            outbox.bytes.push(1);
            outbox.seal(to, start);
        }
        assert_eq!(outbox.send(&sender), 1);
        let mut inbox = Inbox::new();
        inbox.receive(&receiver).unwrap();
        assert_eq!(inbox.len(), 2);
    }
}
