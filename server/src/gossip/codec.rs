//! How SWIM's messages lie in a packet: identities, members and headers, of fixed shape, big endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};
use rollcall_core::ids::ServerId;

use super::identity::Identity;

/// Bytes that are no message, or no room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("the packet ends within a message")]
    CutShort,
    #[error("the packet holds something that is no message")]
    Malformed,
    #[error("no room is left in the packet")]
    Full,
}

const IPV4: u8 = 4;
const IPV6: u8 = 6;

fn need(buf: &impl Buf, bytes: usize) -> Result<(), CodecError> {
    if buf.remaining() < bytes {
        return Err(CodecError::CutShort);
    }
    Ok(())
}

fn identity_size(identity: &Identity) -> usize {
    let ip = if identity.address.is_ipv4() { 4 } else { 16 };
    8 + 8 + 1 + ip + 2
}

pub(crate) fn put_identity(identity: &Identity, mut buf: impl BufMut) {
    buf.put_u64(identity.server.0);
    buf.put_u64(identity.epoch);
    match identity.address.ip() {
        IpAddr::V4(ip) => {
            buf.put_u8(IPV4);
            buf.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(IPV6);
            buf.put_slice(&ip.octets());
        }
    }
    buf.put_u16(identity.address.port());
}

pub(crate) fn take_identity(mut buf: impl Buf) -> Result<Identity, CodecError> {
    need(&buf, 17)?;
    let (server, epoch, family) = (buf.get_u64(), buf.get_u64(), buf.get_u8());
    let ip: IpAddr = match family {
        IPV4 => {
            need(&buf, 6)?;
            Ipv4Addr::from(buf.get_u32()).into()
        }
        IPV6 => {
            need(&buf, 18)?;
            Ipv6Addr::from(buf.get_u128()).into()
        }
        _ => return Err(CodecError::Malformed),
    };
    Ok(Identity {
        server: ServerId(server),
        epoch,
        address: SocketAddr::new(ip, buf.get_u16()),
    })
}

pub(crate) fn put_member(member: &Member<Identity>, mut buf: impl BufMut) {
    put_identity(member.id(), &mut buf);
    buf.put_u16(member.incarnation());
    buf.put_u8(match member.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    });
}

pub(crate) fn take_member(mut buf: impl Buf) -> Result<Member<Identity>, CodecError> {
    let identity = take_identity(&mut buf)?;
    need(&buf, 3)?;
    let incarnation = buf.get_u16();
    let state = match buf.get_u8() {
        0 => State::Alive,
        1 => State::Suspect,
        2 => State::Down,
        _ => return Err(CodecError::Malformed),
    };
    Ok(Member::new(identity, incarnation, state))
}

fn put_message(message: &Message<Identity>, mut buf: impl BufMut) {
    let mut probe = |tag: u8, third: Option<&Identity>, number: u8| {
        buf.put_u8(tag);
        if let Some(third) = third {
            put_identity(third, &mut buf);
        }
        buf.put_u8(number);
    };
    match message {
        Message::Ping(number) => probe(1, None, *number),
        Message::Ack(number) => probe(2, None, *number),
        Message::PingReq { target, probe_number } => probe(3, Some(target), *probe_number),
        Message::IndirectPing { origin, probe_number } => probe(4, Some(origin), *probe_number),
        Message::IndirectAck { target, probe_number } => probe(5, Some(target), *probe_number),
        Message::ForwardedAck { origin, probe_number } => probe(6, Some(origin), *probe_number),
        Message::Announce => buf.put_u8(7),
        Message::Feed => buf.put_u8(8),
        Message::Gossip => buf.put_u8(9),
        Message::Broadcast => buf.put_u8(10),
        Message::TurnUndead => buf.put_u8(11),
    }
}

fn take_message(mut buf: impl Buf) -> Result<Message<Identity>, CodecError> {
    need(&buf, 1)?;
    let tag = buf.get_u8();
    let third = match tag {
        3..=6 => Some(take_identity(&mut buf)?),
        _ => None,
    };
    let number = match tag {
        1..=6 => {
            need(&buf, 1)?;
            buf.get_u8()
        }
        _ => 0,
    };
    Ok(match (tag, third) {
        (1, _) => Message::Ping(number),
        (2, _) => Message::Ack(number),
        (3, Some(target)) => Message::PingReq {
            target,
            probe_number: number,
        },
        (4, Some(origin)) => Message::IndirectPing {
            origin,
            probe_number: number,
        },
        (5, Some(target)) => Message::IndirectAck {
            target,
            probe_number: number,
        },
        (6, Some(origin)) => Message::ForwardedAck {
            origin,
            probe_number: number,
        },
        (7, _) => Message::Announce,
        (8, _) => Message::Feed,
        (9, _) => Message::Gossip,
        (10, _) => Message::Broadcast,
        (11, _) => Message::TurnUndead,
        _ => return Err(CodecError::Malformed),
    })
}

pub(crate) fn put_header(header: &Header<Identity>, mut buf: impl BufMut) {
    put_identity(&header.src, &mut buf);
    buf.put_u16(header.src_incarnation);
    put_identity(&header.dst, &mut buf);
    put_message(&header.message, &mut buf);
}

pub(crate) fn take_header(mut buf: impl Buf) -> Result<Header<Identity>, CodecError> {
    let src = take_identity(&mut buf)?;
    need(&buf, 2)?;
    let src_incarnation = buf.get_u16();
    let dst = take_identity(&mut buf)?;
    let message = take_message(&mut buf)?;
    Ok(Header {
        src,
        src_incarnation,
        dst,
        message,
    })
}

/// A message as a whole, read before SWIM sees any of it, so that a damaged one changes nothing.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) header: Header<Identity>,
    /// Bytes of the header.
    pub(crate) header_bytes: usize,
    pub(crate) updates: Vec<Member<Identity>>,
}

impl Parsed {
    /// Reads it all.
    ///
    /// # Errors
    /// It is not whole, or something is left over.
    pub(crate) fn read(payload: &[u8]) -> Result<Self, CodecError> {
        let mut rest = payload;
        let header = take_header(&mut rest)?;
        let header_bytes = payload.len() - rest.len();
        let mut updates = Vec::new();
        match header.message {
            Message::Announce | Message::TurnUndead if !rest.is_empty() => return Err(CodecError::Malformed),
            Message::Announce | Message::TurnUndead | Message::Broadcast => {}
            Message::Ping(_)
            | Message::Ack(_)
            | Message::PingReq { .. }
            | Message::IndirectPing { .. }
            | Message::IndirectAck { .. }
            | Message::ForwardedAck { .. }
            | Message::Feed
            | Message::Gossip => {
                need(&rest, 2)?;
                for _ in 0..rest.get_u16() {
                    updates.push(take_member(&mut rest)?);
                }
            }
        }
        while !rest.is_empty() {
            need(&rest, 2)?;
            let item = usize::from(rest.get_u16());
            if item == 0 || rest.len() < item {
                return Err(CodecError::Malformed);
            }
            rest.advance(item);
        }
        Ok(Self {
            header,
            header_bytes,
            updates,
        })
    }

    /// The payload it was read from, with those updates alone that `stays` lets stay.
    pub(crate) fn without(&self, payload: &[u8], stays: impl Fn(&Member<Identity>) -> bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(payload.len());
        bytes.extend_from_slice(&payload[..self.header_bytes]);
        let kept: Vec<&Member<Identity>> = self.updates.iter().filter(|update| stays(update)).collect();
        bytes.extend(u16::try_from(kept.len()).unwrap_or(u16::MAX).to_be_bytes());
        kept.into_iter().for_each(|update| put_member(update, &mut bytes));
        let updates: usize = self
            .updates
            .iter()
            .map(|update| identity_size(update.id()) + 3)
            .sum();
        bytes.extend_from_slice(&payload[self.header_bytes + 2 + updates..]);
        bytes
    }

    /// Whom its message names beside sender and receiver.
    pub(crate) fn third_party(&self) -> Option<&Identity> {
        match &self.header.message {
            Message::PingReq { target, .. } | Message::IndirectAck { target, .. } => Some(target),
            Message::IndirectPing { origin, .. } | Message::ForwardedAck { origin, .. } => Some(origin),
            Message::Ping(_)
            | Message::Ack(_)
            | Message::Announce
            | Message::Feed
            | Message::Gossip
            | Message::Broadcast
            | Message::TurnUndead => None,
        }
    }
}

/// A message's name, for counters.
pub(crate) fn kind(message: &Message<Identity>) -> &'static str {
    match message {
        Message::Ping(_) => "ping",
        Message::Ack(_) => "ack",
        Message::PingReq { .. } => "ping_request",
        Message::IndirectPing { .. } => "indirect_ping",
        Message::IndirectAck { .. } => "indirect_ack",
        Message::ForwardedAck { .. } => "forwarded_ack",
        Message::Announce => "announce",
        Message::Feed => "feed",
        Message::Gossip => "gossip",
        Message::Broadcast => "broadcast",
        Message::TurnUndead => "down_notice",
    }
}

/// What foca writes and reads its messages with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WireCodec;

impl foca::Codec<Identity> for WireCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Identity>, mut buf: impl BufMut) -> Result<(), CodecError> {
        let mut bytes = Vec::with_capacity(128);
        put_header(header, &mut bytes);
        if buf.remaining_mut() < bytes.len() {
            return Err(CodecError::Full);
        }
        buf.put_slice(&bytes);
        Ok(())
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, CodecError> {
        take_header(buf)
    }

    fn encode_member(&mut self, member: &Member<Identity>, mut buf: impl BufMut) -> Result<(), CodecError> {
        if buf.remaining_mut() < identity_size(member.id()) + 3 {
            return Err(CodecError::Full);
        }
        put_member(member, &mut buf);
        Ok(())
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>, CodecError> {
        take_member(buf)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn identity() -> impl Strategy<Value = Identity> {
        (any::<u64>(), any::<u64>(), any::<SocketAddr>()).prop_map(|(server, epoch, address)| Identity {
            server: ServerId(server),
            epoch,
            address: SocketAddr::new(address.ip(), address.port()),
        })
    }

    fn message() -> impl Strategy<Value = Message<Identity>> {
        (0..11_u8, identity(), any::<u8>()).prop_map(|(which, third, probe_number)| match which {
            0 => Message::Ping(probe_number),
            1 => Message::Ack(probe_number),
            2 => Message::PingReq {
                target: third,
                probe_number,
            },
            3 => Message::IndirectPing {
                origin: third,
                probe_number,
            },
            4 => Message::IndirectAck {
                target: third,
                probe_number,
            },
            5 => Message::ForwardedAck {
                origin: third,
                probe_number,
            },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            _ => Message::TurnUndead,
        })
    }

    proptest! {
        #[test]
        fn headers_come_back_as_they_were(src in identity(), dst in identity(), src_incarnation: u16, message in message()) {
            let header = Header { src, src_incarnation, dst, message };
            let mut bytes = Vec::new();
            put_header(&header, &mut bytes);
            prop_assert_eq!(take_header(&bytes[..]).unwrap(), header);
            for end in 0..bytes.len() {
                prop_assert!(take_header(&bytes[..end]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Parsed::read(&bytes);
        }
    }
}
