//! The lab's hosts: network namespaces with one interface each, on one subnet.

use std::fmt::Write as _;
use std::fs::File;
use std::net::Ipv4Addr;

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::claim::{Claim, Duty};
use super::command::run;
use super::frame::Mac;

/// The subnet's last number for the harness; servers have their own.
const HARNESS_ADDRESS: u8 = 250;

/// Names and addresses of the hosts of one lab. Number 0 is the harness: the machine's own namespace, where the
/// tests run; the others are namespaces, the servers' hosts first, then those of clients.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    claim: u8,
    servers: u8,
    clients: u8,
}

impl Plan {
    pub(super) fn new(claim: u8, servers: u8, clients: u8) -> Self {
        Self {
            claim,
            servers,
            clients,
        }
    }

    /// All hosts, the harness first.
    pub(super) fn all(&self) -> impl Iterator<Item = u8> + use<> {
        0..=self.servers + self.clients
    }

    /// Those of servers.
    pub(super) fn servers(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.servers
    }

    /// Those of clients.
    pub(super) fn clients(&self) -> impl Iterator<Item = u8> + use<> {
        self.servers + 1..=self.servers + self.clients
    }

    /// `rc-<claim>-<host>`, `rc-<claim>-c<number>` for a host of clients.
    pub(super) fn namespace(&self, host: u8) -> String {
        if host > self.servers {
            format!("rc-{}-c{}", self.claim, host - self.servers)
        } else {
            format!("rc-{}-{host}", self.claim)
        }
    }

    pub(super) fn namespace_path(&self, host: u8) -> String {
        format!("/run/netns/{}", self.namespace(host))
    }

    /// What the interface is called while it is in the machine's own namespace.
    fn device(&self, host: u8) -> String {
        format!("rc{}h{host}", self.claim)
    }

    /// 198.18.0.0/15 is set aside for measuring networks (RFC 2544): nobody routes it.
    pub(super) fn address(&self, host: u8) -> Ipv4Addr {
        let last = if host == 0 { HARNESS_ADDRESS } else { host };
        Ipv4Addr::new(198, 18, self.claim, last)
    }

    pub(super) fn mac(&self, host: u8) -> Mac {
        // The second bit of the first byte: locally administered.
        [0x02, b'r', b'c', self.claim, 0, host]
    }

    /// Makes the namespaces and their interfaces; gives back the other end of each interface, the harness's first.
    pub(super) fn build(&self, claim: &mut Claim) -> anyhow::Result<Vec<SyncDevice>> {
        let mut devices = Vec::new();
        let mut commands = String::new();
        for host in self.all() {
            // It vanishes with its last descriptor, so nobody needs to undo it.
            let device = DeviceBuilder::new()
                .name(self.device(host))
                .layer(Layer::L2)
                .enable(false)
                .build_sync()
                .with_context(|| format!("making the TAP device {}", self.device(host)))?;
            device.set_nonblocking(true)?;
            devices.push(device);
            if host > 0 {
                let name = self.namespace(host);
                claim.promise(Duty::Namespace(name.clone()))?;
                let _ = writeln!(commands, "netns add {name}");
                let _ = writeln!(commands, "link set dev {} netns {name}", self.device(host));
            }
        }
        commands.push_str(&self.interface(0));
        run("ip", &["-batch", "-"], &commands)?;
        for host in self.all().skip(1) {
            let inside = format!("link set dev lo up\n{}", self.interface(host));
            run("ip", &["-netns", &self.namespace(host), "-batch", "-"], &inside)?;
        }
        Ok(devices)
    }

    /// The commands that set one interface up. Neighbours are written in for good: a cut host is then silence, as
    /// behind a router, and no lost question for an address blurs what a test does to the frames.
    fn interface(&self, host: u8) -> String {
        let device = self.device(host);
        let mut commands = String::new();
        let _ = writeln!(
            commands,
            "link set dev {device} address {} addrgenmode none",
            written(self.mac(host))
        );
        let _ = writeln!(commands, "addr add {}/24 dev {device}", self.address(host));
        let _ = writeln!(commands, "link set dev {device} up");
        for other in self.all().filter(|other| *other != host) {
            let _ = writeln!(
                commands,
                "neigh replace {} lladdr {} nud permanent dev {device}",
                self.address(other),
                written(self.mac(other))
            );
        }
        commands
    }

    /// Runs `work` on a thread inside a host's namespace: sockets it makes belong to that host for ever.
    pub(super) fn inside<T: Send>(&self, host: u8, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        if host == 0 {
            return Ok(work());
        }
        let namespace = self.open(host)?;
        let on_thread = || {
            enter(&namespace).with_context(|| format!("entering {}", self.namespace(host)))?;
            Ok(work())
        };
        std::thread::scope(|scope| match scope.spawn(on_thread).join() {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked),
        })
    }

    /// The namespace of a host, to be entered by further threads.
    pub(super) fn open(&self, host: u8) -> anyhow::Result<File> {
        let path = self.namespace_path(host);
        File::open(&path).with_context(|| format!("opening {path}"))
    }
}

/// Moves the calling thread there for good.
pub(super) fn enter(namespace: &File) -> std::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
}

fn written(mac: Mac) -> String {
    let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_labs_share_no_name_and_no_address() {
        let (one, two) = (Plan::new(3, 5, 2), Plan::new(4, 5, 2));
        assert_eq!(one.namespace(2), "rc-3-2");
        assert_eq!(one.namespace(7), "rc-3-c2");
        assert_eq!(one.clients().collect::<Vec<_>>(), [6, 7]);
        assert_eq!(one.address(2).to_string(), "198.18.3.2");
        assert_eq!(one.address(0).to_string(), "198.18.3.250");
        for host in one.all() {
            assert_ne!(one.address(host), two.address(host));
            assert_ne!(one.mac(host), two.mac(host));
            assert_ne!(one.device(host), two.device(host));
            assert!(one.device(host).len() < 16, "the kernel's bound for names");
        }
    }
}
