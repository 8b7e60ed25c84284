//! Which way a session's heartbeats go, and the datagrams' way: when it is tried, and when it is left.
//!
//! A session begins on a stream. When the stream has nothing to carry any more, datagrams are tried beside it; only when
//! one was acknowledged is the stream put down. A write takes it up again. When datagrams are no longer answered the
//! stream is taken up too, at whatever server answers, and they are tried again later, ever less often.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rollcall_proto::heartbeat::DATAGRAM_BYTES_MAX;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::pulse::{Due, Heard, Pulse};
use crate::backoff::Backoff;

/// How a session shows that it lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heartbeats {
    /// On its stream, which stays open.
    #[default]
    Stream,
    /// By datagram (UDP), without a connection, as soon as its writes are answered; on a stream where that does not work.
    Datagram,
    /// By datagram once nothing was written for a ttl; so a session that is written to often keeps its stream.
    Auto,
}

impl Heartbeats {
    /// How long nothing must have been written before datagrams are tried; `None`: they never are.
    fn quiet_for(self, ttl: Duration) -> Option<Duration> {
        match self {
            Self::Stream => None,
            Self::Datagram => Some((ttl / 12).min(Duration::from_secs(1))),
            Self::Auto => Some(ttl),
        }
    }
}

/// How long finding the server's address may take.
const RESOLVE_MAX: Duration = Duration::from_secs(2);
/// Datagrams that fail are tried again after a ttl at the earliest, and after so long at the latest.
const RETRY_MAX: Duration = Duration::from_secs(600);

type Opening = Pin<Box<dyn Future<Output = std::io::Result<UdpSocket>> + Send>>;

enum Line {
    Closed,
    Opening(Opening, Pulse),
    Open(UdpSocket, Box<[u8; DATAGRAM_BYTES_MAX]>, Pulse),
}

/// Something happened on the line.
pub(super) enum Signal {
    Opened(std::io::Result<UdpSocket>),
    Arrived(std::io::Result<usize>),
}

/// What it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    None,
    /// A heartbeat was acknowledged.
    Renewed,
    /// The session is dead.
    NotFound,
    /// Datagrams do not work, or not any more.
    Failed(&'static str),
}

/// The datagrams' way.
pub(super) struct Datagrams {
    choice: Heartbeats,
    /// Where the server that was last spoken to takes them.
    target: Option<String>,
    line: Line,
    /// The highest counter that was said.
    counted: u64,
    retry: Option<Backoff>,
    /// Not before.
    try_at: Instant,
}

impl Datagrams {
    pub(super) fn new(choice: Heartbeats) -> Self {
        Self {
            choice,
            target: None,
            line: Line::Closed,
            counted: 0,
            retry: None,
            try_at: Instant::now(),
        }
    }

    /// Whether a session's stream may be put down at some time, so that it wants a connection of its own.
    pub(super) fn are_wanted(&self) -> bool {
        self.choice != Heartbeats::Stream
    }

    /// A stream stands, and its server says where it takes datagrams.
    pub(super) fn on_told(&mut self, server: &str, told: &str) {
        self.close();
        self.target = target(server, told);
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.line, Line::Closed)
    }

    pub(super) fn close(&mut self) {
        if let Line::Opening(_, pulse) | Line::Open(_, _, pulse) =
            std::mem::replace(&mut self.line, Line::Closed)
        {
            self.counted = self.counted.max(pulse.counter());
        }
    }

    /// When datagrams may be tried, if the stream has been quiet since then.
    pub(super) fn try_at(&self, quiet_since: Instant, ttl: Duration) -> Option<Instant> {
        if self.is_open() || self.target.is_none() {
            return None;
        }
        let quiet_for = self.choice.quiet_for(ttl)?;
        Some((quiet_since + quiet_for).max(self.try_at))
    }

    /// Begins to speak.
    pub(super) fn open(&mut self, session: u64, secret: &[u8], ttl: Duration, now: Instant) {
        let Some(target) = self.target.clone() else { return };
        self.retry.get_or_insert_with(|| Backoff::new(ttl, RETRY_MAX));
        self.close();
        // Above what any former life of this session has used, and what this one has, wherever the clock was set.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = u64::try_from(since_1970.as_micros()).unwrap_or(0);
        let pulse = Pulse::new(session, secret, ttl, clock.max(self.counted), now);
        self.line = Line::Opening(Box::pin(connect(target)), pulse);
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.line {
            Line::Closed | Line::Opening(..) => None,
            Line::Open(_, _, pulse) => Some(pulse.due_at()),
        }
    }

    /// Cancel-safe.
    pub(super) async fn next_signal(&mut self) -> Signal {
        match &mut self.line {
            Line::Closed => std::future::pending().await,
            Line::Opening(opening, _) => Signal::Opened(opening.await),
            Line::Open(socket, buffer, _) => Signal::Arrived(socket.recv(&mut **buffer).await),
        }
    }

    pub(super) fn on_signal(&mut self, signal: Signal, now: Instant) -> News {
        match signal {
            Signal::Opened(Ok(socket)) => {
                if let Line::Opening(_, pulse) = std::mem::replace(&mut self.line, Line::Closed) {
                    self.line = Line::Open(socket, Box::new([0; DATAGRAM_BYTES_MAX]), pulse);
                }
                self.on_time(now)
            }
            Signal::Opened(Err(error)) => {
                tracing::debug!(%error, "the address for heartbeats cannot be found");
                self.fail("heartbeats by datagram find no address", now)
            }
            Signal::Arrived(Ok(length)) => self.on_datagram(length, now),
            // Such as "nobody listens there". The heartbeat is said again all the same: the server may be restarting.
            Signal::Arrived(Err(_)) => News::None,
        }
    }

    fn on_datagram(&mut self, length: usize, now: Instant) -> News {
        let Line::Open(socket, buffer, pulse) = &mut self.line else {
            return News::None;
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        match pulse.hear(bytes, now) {
            (Heard::Nothing, _) => News::None,
            (Heard::Number, again) => {
                if let Some(bytes) = again {
                    send(socket, &bytes);
                }
                News::None
            }
            (Heard::Renewed, _) => {
                if let Some(retry) = &mut self.retry {
                    retry.reset();
                }
                News::Renewed
            }
            (Heard::NotFound, _) => News::NotFound,
            (Heard::Unknown, _) => self.fail("the server does not know the session by datagram", now),
        }
    }

    /// Says what is due.
    pub(super) fn on_time(&mut self, now: Instant) -> News {
        let Line::Open(socket, _, pulse) = &mut self.line else {
            return News::None;
        };
        match pulse.take_due(now) {
            Due::Nothing => News::None,
            Due::Send(bytes) => {
                send(socket, &bytes);
                News::None
            }
            Due::GiveUp => self.fail("heartbeats by datagram were not answered", now),
        }
    }

    fn fail(&mut self, reason: &'static str, now: Instant) -> News {
        self.close();
        if let Some(retry) = &mut self.retry {
            self.try_at = now + retry.next_delay();
        }
        News::Failed(reason)
    }
}

/// What cannot be sent now is said again soon.
fn send(socket: &UdpSocket, bytes: &[u8]) {
    if let Err(error) = socket.try_send(bytes) {
        tracing::debug!(%error, "a heartbeat was not sent");
    }
}

/// `host:port` for what a server told, `:port` being at the host that was dialled.
fn target(server: &str, told: &str) -> Option<String> {
    if told.is_empty() {
        return None;
    }
    if !told.starts_with(':') {
        return Some(told.to_owned());
    }
    let (_, authority) = server.rsplit_once("://").unwrap_or(("", server));
    let (host, _) = authority.trim_end_matches('/').rsplit_once(':')?;
    Some(format!("{host}{told}"))
}

async fn connect(target: String) -> std::io::Result<UdpSocket> {
    let connecting = async {
        let mut last = None;
        for address in tokio::net::lookup_host(&target).await? {
            match connect_to(address).await {
                Ok(socket) => return Ok(socket),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
    };
    match tokio::time::timeout(RESOLVE_MAX, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

async fn connect_to(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    // Until the runtime has looked at it once nothing can be sent without waiting.
    socket.writable().await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_at_the_host_that_was_dialled() {
        assert_eq!(
            target("a.example:7400", ":7500").as_deref(),
            Some("a.example:7500")
        );
        assert_eq!(target("http://[::1]:7400/", ":7").as_deref(), Some("[::1]:7"));
        assert_eq!(target("a:1", "b:2").as_deref(), Some("b:2"));
        assert_eq!(target("a:1", ""), None);
    }

    #[tokio::test]
    async fn datagrams_are_tried_when_the_stream_is_quiet_and_ever_less_often_when_they_fail() {
        let (now, ttl) = (Instant::now(), Duration::from_secs(12));
        let mut never = Datagrams::new(Heartbeats::Stream);
        never.on_told("127.0.0.1:1", ":9");
        assert_eq!(never.try_at(now, ttl), None);
        let mut auto = Datagrams::new(Heartbeats::Auto);
        assert_eq!(auto.try_at(now, ttl), None, "no server takes any");
        auto.on_told("127.0.0.1:1", ":9");
        assert_eq!(auto.try_at(now, ttl), Some(now + ttl));
        let mut datagrams = Datagrams::new(Heartbeats::Datagram);
        datagrams.on_told("127.0.0.1:1", ":9");
        assert_eq!(datagrams.try_at(now, ttl), Some(now + Duration::from_secs(1)));
        let mut pause = Duration::ZERO;
        for _ in 0..12 {
            datagrams.open(1, b"secret", ttl, now);
            assert!(datagrams.is_open() && datagrams.try_at(now, ttl).is_none());
            assert!(matches!(datagrams.fail("not answered", now), News::Failed(_)));
            pause = datagrams.try_at(now, ttl).unwrap() - now;
            assert!(pause >= ttl / 2 && pause <= RETRY_MAX, "{pause:?}");
        }
        assert!(pause >= RETRY_MAX / 2);
    }

    #[tokio::test]
    async fn counters_rise_wherever_the_clock_is_set() {
        let (now, ttl) = (Instant::now(), Duration::from_secs(12));
        let mut datagrams = Datagrams::new(Heartbeats::Datagram);
        datagrams.on_told("127.0.0.1:1", ":9");
        // The clock was far ahead when it spoke first.
        let ahead = u64::MAX / 2;
        let spoken = Pulse::new(1, b"secret", ttl, ahead, now);
        datagrams.line = Line::Opening(Box::pin(std::future::pending()), spoken);
        for _ in 0..3 {
            datagrams.open(1, b"secret", ttl, now);
            let Line::Opening(_, pulse) = &datagrams.line else {
                panic!("it is being opened")
            };
            assert!(pulse.counter() >= ahead, "{}", pulse.counter());
            datagrams.close();
        }
    }
}
