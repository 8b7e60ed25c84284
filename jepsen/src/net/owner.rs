//! Whose socket it is. On loopback all servers have one address, but the kernel tells which process has dialled.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The connections of this machine's namespace, a line each.
const CONNECTIONS: &str = "/proc/net/tcp";

/// The number of the socket that dialled from `from` to `to`; `None`: it is gone.
pub(super) fn socket_of(from: SocketAddr, to: SocketAddr) -> io::Result<Option<u64>> {
    let connections = fs::read_to_string(CONNECTIONS)?;
    let mut lines = connections.lines().skip(1);
    Ok(lines.find_map(|line| {
        let (of, inode) = connection(line)?;
        (of == (from, to)).then_some(inode)
    }))
}

/// Whether a process has this socket open. Its own user may ask, and root.
pub(super) fn has_open(pid: u32, socket: u64) -> bool {
    let wanted = PathBuf::from(format!("socket:[{socket}]"));
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let mut open = open.filter_map(Result::ok);
    open.any(|open| fs::read_link(open.path()).is_ok_and(|to| to == wanted))
}

fn connection(line: &str) -> Option<((SocketAddr, SocketAddr), u64)> {
    let mut fields = line.split_whitespace().skip(1);
    let (from, to) = (address(fields.next()?)?, address(fields.next()?)?);
    let inode = fields.nth(6)?.parse().ok()?;
    Some(((from, to), inode))
}

/// `0100007F:1F90`: four bytes as they lie in memory, read as one number; the port as people write it.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_process_that_dialled_is_found_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_taken, from) = listener.accept().unwrap();
        let to = listener.local_addr().unwrap();
        assert_eq!(dialled.local_addr().unwrap(), from);
        let socket = socket_of(from, to).unwrap().unwrap();
        assert!(has_open(std::process::id(), socket));
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!has_open(other.id(), socket));
        other.kill().unwrap();
        other.wait().unwrap();
        drop(dialled);
        let unused = "127.0.0.1:1".parse().unwrap();
        assert_eq!(socket_of(unused, to).unwrap(), None);
    }
}
