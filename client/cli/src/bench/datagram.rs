//! `rollcall bench renew --datagram`: heartbeats without connections. One task a socket.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use rollcall_proto::heartbeat::{
    Answer, DATAGRAM_BYTES_MAX, ENTRIES_MAX, EntriesWriter, HeartbeatKey, Kind, Mac, write_hello,
};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::lane::Lane;
use super::report::Tally;
use super::stream::OpenedSession;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// A heartbeat that was not answered for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// How often lost ones are looked for.
const LOST_LOOK: Duration = Duration::from_millis(250);
/// How often a server is asked for its number.
const HELLOS: u32 = 5;
/// And how long each time.
const HELLO_WAIT: Duration = Duration::from_millis(500);

/// A socket and the sessions that speak on it.
pub(crate) struct Speaker {
    socket: UdpSocket,
    number: u64,
    sessions: Vec<(u64, HeartbeatKey)>,
    /// Heartbeats of one datagram.
    batch: usize,
}

impl Speaker {
    /// Introduces itself to the server at `server`, which said at `told` that it takes datagrams.
    pub(crate) async fn start(
        index: usize,
        server: &str,
        told: &str,
        sessions: &[OpenedSession],
        batch: usize,
    ) -> Result<Self, Failure> {
        let target = target(server, told)
            .ok_or_else(|| Failure::failed(format!("{server} takes no heartbeats by datagram")))?;
        let unreachable = |error: std::io::Error| Failure::unavailable(format!("{target}: {error}"));
        let mut found = tokio::net::lookup_host(&target).await.map_err(unreachable)?;
        let to = found
            .next()
            .ok_or_else(|| Failure::unavailable(format!("{target} has no address")))?;
        let socket = UdpSocket::bind((host(index, to.ip()), 0))
            .await
            .map_err(unreachable)?;
        socket.connect(to).await.map_err(unreachable)?;
        let number = greet(&socket)
            .await
            .ok_or_else(|| Failure::unavailable(format!("{target} does not answer by datagram")))?;
        Ok(Self {
            socket,
            number,
            sessions: sessions
                .iter()
                .map(|opened| (opened.session, HeartbeatKey::of_secret(&opened.secret)))
                .collect(),
            batch: batch.clamp(1, ENTRIES_MAX),
        })
    }

    /// Drives a lane until it is done or the interrupt comes.
    pub(crate) async fn drive(
        mut self,
        mut lane: Lane,
        base: u64,
        progress: &Progress,
        mut interrupt: Interrupt,
    ) -> Tally {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        let mut under_way: VecDeque<(u64, Instant)> = VecDeque::new();
        let mut look_at = Instant::now() + LOST_LOOK;
        let mut interrupted = interrupt.is_requested();
        loop {
            if interrupted {
                lane.stop();
            }
            self.send_due(&mut lane, base, &mut under_way);
            let now = Instant::now();
            if lane.is_done(now) {
                return lane.into_tally(now);
            }
            if now >= look_at {
                look_at = now + LOST_LOOK;
                while let Some((call, sent_at)) = under_way.front().copied()
                    && sent_at + LOST_AFTER <= now
                {
                    under_way.pop_front();
                    lane.on_answer(call, Err("lost".into()), now);
                }
            }
            let wake = lane.next_wake(now).map_or(look_at, |wake| wake.min(look_at));
            tokio::select! {
                // An error is the system's word on an earlier datagram, whose answer is missing anyway.
                _ = self.socket.readable() => while let Ok(length) = self.socket.try_recv(&mut buffer) {
                    self.take(&buffer[..length], &mut lane, base, progress);
                },
                () = tokio::time::sleep_until(wake) => {}
                () = interrupt.requested(), if !interrupted => interrupted = true,
            }
        }
    }

    fn send_due(&self, lane: &mut Lane, base: u64, under_way: &mut VecDeque<(u64, Instant)>) {
        let now = Instant::now();
        let mut bytes = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        loop {
            bytes.clear();
            let mut writer = EntriesWriter::begin(&mut bytes, Kind::Beats, self.number);
            let mut count = 0;
            while count < self.batch
                && let Some(departure) = lane.take_due(now)
            {
                let call = departure.call;
                let (session, key) = &self.sessions[(call % self.sessions.len() as u64) as usize];
                let entry = key.entry(Kind::Beats, self.number, *session, base + call);
                writer.push(&mut bytes, &entry);
                under_way.push_back((call, now));
                count += 1;
            }
            if count == 0 {
                return;
            }
            // What the system does not take now is lost, and found to be so.
            let _ = self.socket.try_send(&bytes);
        }
    }

    fn take(&mut self, bytes: &[u8], lane: &mut Lane, base: u64, progress: &Progress) {
        match Answer::read(bytes) {
            Ok(Answer::Challenge { number, .. }) => self.number = number,
            Ok(Answer::Verdicts {
                kind,
                number,
                entries,
            }) => {
                let now = Instant::now();
                for entry in entries {
                    let call = entry.counter.wrapping_sub(base);
                    let (session, key) = &self.sessions[(call % self.sessions.len() as u64) as usize];
                    let result = match kind {
                        _ if *session != entry.session => Err("a foreign answer".into()),
                        Kind::Unknown => Err("unknown".into()),
                        kind if !key.verifies(kind, number, &entry) => Err("a forged answer".into()),
                        Kind::Renewed => Ok(1),
                        _ => Err("session_not_found".into()),
                    };
                    lane.on_answer(call, result, now);
                    progress.add(1);
                }
            }
            Err(_) => {}
        }
    }
}

/// The server's number.
async fn greet(socket: &UdpSocket) -> Option<u64> {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    for _ in 0..HELLOS {
        let token: Mac = rand::random();
        let mut hello = Vec::new();
        write_hello(&mut hello, &token);
        socket.send(&hello).await.ok()?;
        let answer = async {
            loop {
                let length = socket.recv(&mut buffer).await.ok()?;
                if let Ok(Answer::Challenge { number, echo }) = Answer::read(&buffer[..length])
                    && echo == token
                {
                    return Some(number);
                }
            }
        };
        if let Ok(Some(number)) = tokio::time::timeout(HELLO_WAIT, answer).await {
            return Some(number);
        }
    }
    None
}

/// On this machine every socket is a host of its own, as providers are.
fn host(index: usize, to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(address) if address.is_loopback() => {
            let [low, middle] = [(index % 250) as u8 + 1, (index / 250 % 250) as u8];
            Ipv4Addr::new(127, 1, middle, low).into()
        }
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// `host:port` for what a server told, `:port` being at the host that was dialled.
fn target(server: &str, told: &str) -> Option<String> {
    if !told.starts_with(':') {
        return (!told.is_empty()).then(|| told.to_owned());
    }
    let (_, authority) = server.rsplit_once("://").unwrap_or(("", server));
    let (host, _) = authority.trim_end_matches('/').rsplit_once(':')?;
    Some(format!("{host}{told}"))
}

/// Counters begin with the clock, so that they are above those of any earlier run.
pub(crate) fn first_counter() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(1, |time| u64::try_from(time.as_micros()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn every_socket_is_a_host_of_its_own_on_this_machine() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let hosts: BTreeSet<_> = (0..10_000).map(|index| host(index, loopback)).collect();
        assert_eq!(hosts.len(), 10_000);
        assert!(hosts.iter().all(IpAddr::is_loopback));
        let elsewhere: SocketAddr = "10.0.0.1:1".parse().unwrap();
        assert!(host(7, elsewhere.ip()).is_unspecified());
    }

    #[test]
    fn a_server_that_takes_none_is_found_out() {
        assert_eq!(
            target("127.0.0.1:7400", ":7500").as_deref(),
            Some("127.0.0.1:7500")
        );
        assert_eq!(target("127.0.0.1:7400", ""), None);
        assert_eq!(target("127.0.0.1:7400", "b:1").as_deref(), Some("b:1"));
    }
}
