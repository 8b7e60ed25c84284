//! As much of Ethernet and IPv4 as a switch and its meters need.

use super::quality::Protocol;

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// Destination, source, type.
pub(super) const ETHERNET_HEADER: usize = 14;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];

/// Where a frame goes; `None`: it is too short to be one.
pub(super) fn destination(frame: &[u8]) -> Option<Mac> {
    frame.first_chunk::<6>().copied()
}

/// Protocol, source port and destination port; `None` for anything but whole TCP and UDP over IPv4. Later
/// fragments have no ports; the lab's hosts do not fragment TCP.
pub(super) fn ports(frame: &[u8]) -> Option<(Protocol, u16, u16)> {
    let packet = frame.get(ETHERNET_HEADER..)?;
    if frame.get(12..14)? != TYPE_IPV4 || packet.first()? >> 4 != 4 {
        return None;
    }
    let protocol = match packet.get(9)? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
    if fragment != 0 {
        return None;
    }
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let ports = packet.get(header..header + 4)?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some((protocol, port(0), port(2)))
}

/// For tests: a frame to `to` with these ports and `payload` bytes of content.
#[cfg(test)]
pub(super) fn sample(to: Mac, protocol: Protocol, from_port: u16, to_port: u16, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame.extend_from_slice(&TYPE_IPV4);
    let mut packet = [0_u8; 20];
    packet[0] = 0x45;
    packet[9] = if protocol == Protocol::Tcp { 6 } else { 17 };
    frame.extend_from_slice(&packet);
    frame.extend_from_slice(&from_port.to_be_bytes());
    frame.extend_from_slice(&to_port.to_be_bytes());
    frame.resize(frame.len() + payload, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_and_truncation_is_harmless() {
        let frame = sample([2, 0, 0, 0, 0, 1], Protocol::Udp, 1_000, 7_403, 0);
        assert_eq!(destination(&frame), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(ports(&frame), Some((Protocol::Udp, 1_000, 7_403)));
        for length in 0..frame.len() {
            assert_eq!(ports(&frame[..length]), None);
        }
        let mut other = frame;
        other[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(ports(&other), None);
    }
}
