//! Relations between fields, checked once at start.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::{Config, ConfigError, MemberConfig};

impl Config {
    /// Checks what the types cannot say. Touches nothing outside.
    ///
    /// # Errors
    /// [`ConfigError::Contradiction`] with the field, its value and what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_cluster()?;
        self.check_listen()?;
        self.check_raft()?;
        self.check_gossip()?;
        self.check_ap()?;
        self.check_session()?;
        self.check_datagram()?;
        self.check_watch()?;
        self.check_storm()?;
        self.check_doors()?;
        self.check_log()
    }

    fn check_log(&self) -> Result<(), ConfigError> {
        let filter = &self.log.filter;
        let parsed = EnvFilter::try_new(filter);
        let problem = parsed.err().map(|error| error.to_string());
        demand(
            problem.is_none(),
            "log.filter",
            filter,
            &problem.unwrap_or_default(),
        )
    }

    fn check_cluster(&self) -> Result<(), ConfigError> {
        let cluster = &self.cluster;
        let named = !cluster.name.is_empty()
            && cluster.name.len() <= 128
            && cluster
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        demand(
            named,
            "cluster.name",
            &cluster.name,
            "use 1 to 128 characters of [A-Za-z0-9._-]",
        )?;
        demand(cluster.id >= 1, "cluster.id", cluster.id, "server ids start at 1")?;
        if cluster.join {
            return Ok(());
        }
        let ids: BTreeSet<u64> = cluster.members.iter().map(|member| member.id).collect();
        demand(
            !cluster.members.is_empty(),
            "cluster.members",
            "empty",
            "name the founding servers (--members), or use --join to join a running cluster, or --dev for one server",
        )?;
        demand(
            ids.len() == cluster.members.len(),
            "cluster.members",
            ids_of(&cluster.members),
            "ids repeat",
        )?;
        demand(
            !ids.contains(&0),
            "cluster.members",
            ids_of(&cluster.members),
            "server ids start at 1",
        )?;
        demand(
            ids.contains(&cluster.id),
            "cluster.id",
            cluster.id,
            &format!("it is not among cluster.members ({})", ids_of(&cluster.members)),
        )?;
        for member in &cluster.members {
            for address in [&member.peer, &member.client] {
                demand(
                    is_host_port(address),
                    "cluster.members",
                    address,
                    "an address is host:port",
                )?;
            }
            let http = &member.http;
            demand(
                http.is_empty() || is_host_port(http),
                "cluster.members",
                http,
                "an address is host:port",
            )?;
        }
        Ok(())
    }

    fn check_listen(&self) -> Result<(), ConfigError> {
        let listen = &self.listen;
        let fixed = |address: std::net::SocketAddr| address.port() != 0;
        for (field, one, other_field, other) in [
            ("listen.peer", listen.peer, "listen.client", listen.client),
            ("listen.http", listen.http, "listen.client", listen.client),
            ("listen.http", listen.http, "listen.peer", listen.peer),
        ] {
            let problem = format!("{other_field} is the same; give each listener an address of its own");
            demand(one != other || !fixed(one), field, one, &problem)?;
        }
        for (field, address) in [
            ("listen.advertise_client", &listen.advertise_client),
            ("listen.advertise_peer", &listen.advertise_peer),
            ("listen.advertise_gossip", &listen.advertise_gossip),
            ("listen.advertise_heartbeat", &listen.advertise_heartbeat),
            ("listen.advertise_http", &listen.advertise_http),
        ] {
            let address = address.as_deref().unwrap_or("host:1");
            demand(is_host_port(address), field, address, "an address is host:port")?;
        }
        Ok(())
    }

    fn check_raft(&self) -> Result<(), ConfigError> {
        let raft = &self.raft;
        let (heartbeat, min, max) = (
            raft.heartbeat_interval,
            raft.election_timeout_min,
            raft.election_timeout_max,
        );
        let millisecond = Duration::from_millis(1);
        demand(
            heartbeat >= millisecond,
            "raft.heartbeat_interval",
            time(heartbeat),
            "at least 1ms",
        )?;
        demand(
            heartbeat.saturating_mul(3) < min,
            "raft.heartbeat_interval",
            time(heartbeat),
            &format!(
                "three of them must fit into raft.election_timeout_min ({})",
                time(min)
            ),
        )?;
        demand(
            min < max,
            "raft.election_timeout_min",
            time(min),
            &format!("it must be below raft.election_timeout_max ({})", time(max)),
        )?;
        demand(
            raft.snapshot_after_entries >= 100,
            "raft.snapshot_after_entries",
            raft.snapshot_after_entries,
            "at least 100",
        )
    }

    fn check_gossip(&self) -> Result<(), ConfigError> {
        let (gossip, listen) = (&self.gossip, &self.listen);
        if !gossip.enabled {
            return Ok(());
        }
        demand(
            (2..=4_096).contains(&gossip.members_max),
            "gossip.members_max",
            gossip.members_max,
            "2 to 4096",
        )?;
        for seed in &gossip.seeds {
            demand(
                is_host_port(seed),
                "gossip.seeds",
                seed,
                "an address is host:port",
            )?;
        }
        let address = listen.gossip.unwrap_or(listen.peer);
        let advertised = listen.advertise_gossip.is_some() || listen.advertise_peer.is_some();
        demand(
            advertised || !address.ip().is_unspecified(),
            "listen.gossip",
            address,
            "the others cannot send there; set listen.advertise_gossip or listen.advertise_peer, or gossip.enabled = false",
        )
    }

    fn check_session(&self) -> Result<(), ConfigError> {
        let session = &self.session;
        let longest = Duration::from_millis(u64::from(u32::MAX));
        demand(
            session.ttl_min >= Duration::from_millis(500),
            "session.ttl_min",
            time(session.ttl_min),
            "at least 500ms",
        )?;
        demand(
            session.ttl_max <= longest,
            "session.ttl_max",
            time(session.ttl_max),
            "at most 49 days",
        )?;
        demand(
            session.ttl_min <= session.ttl_default,
            "session.ttl_default",
            time(session.ttl_default),
            &format!("it must not be below session.ttl_min ({})", time(session.ttl_min)),
        )?;
        demand(
            session.ttl_default <= session.ttl_max,
            "session.ttl_default",
            time(session.ttl_default),
            &format!("it must not be above session.ttl_max ({})", time(session.ttl_max)),
        )?;
        demand(
            session.per_stream_max >= 1,
            "session.per_stream_max",
            session.per_stream_max,
            "at least 1",
        )?;
        demand(
            session.in_flight_max >= 1,
            "session.in_flight_max",
            session.in_flight_max,
            "at least 1",
        )
    }

    fn check_datagram(&self) -> Result<(), ConfigError> {
        let (datagram, listen) = (&self.datagram, &self.listen);
        if !datagram.enabled {
            return Ok(());
        }
        for (field, value, least) in [
            ("datagram.beats_per_second", datagram.beats_per_second as usize, 1),
            ("datagram.beats_burst", datagram.beats_burst as usize, 100),
            ("datagram.waiting_max", datagram.waiting_max, 1),
            (
                "datagram.receive_buffer_bytes",
                datagram.receive_buffer_bytes,
                4_096,
            ),
        ] {
            demand(value >= least, field, value, &format!("at least {least}"))?;
        }
        let buffer = datagram.receive_buffer_bytes;
        demand(
            buffer <= 1 << 30,
            "datagram.receive_buffer_bytes",
            buffer,
            "at most 1073741824",
        )?;
        let heartbeat = listen.heartbeat.unwrap_or(listen.client);
        let gossip = listen.gossip.unwrap_or(listen.peer);
        demand(
            heartbeat != gossip || heartbeat.port() == 0 || !self.gossip.enabled,
            "listen.heartbeat",
            heartbeat,
            "listen.gossip is the same; give each listener an address of its own",
        )
    }

    fn check_watch(&self) -> Result<(), ConfigError> {
        let watch = &self.watch;
        for (field, value) in [
            ("watch.streams_max", watch.streams_max),
            ("watch.subscriptions_max", watch.subscriptions_max),
            ("watch.backlog_frames", watch.backlog_frames),
            ("watch.backlog_bytes", watch.backlog_bytes),
            ("watch.response_bytes", watch.response_bytes),
            ("watch.retained_revisions", watch.retained_revisions),
            ("watch.retained_bytes", watch.retained_bytes),
        ] {
            demand(value >= 1, field, value, "at least 1")?;
        }
        let bookmark = watch.bookmark_interval;
        demand(
            bookmark >= Duration::from_millis(10),
            "watch.bookmark_interval",
            time(bookmark),
            "at least 10ms",
        )?;
        let message = self.doors.message_bytes_max;
        demand(
            watch.response_bytes <= message,
            "watch.response_bytes",
            watch.response_bytes,
            &format!("it must not be above doors.message_bytes_max ({message})"),
        )?;
        demand(
            watch.large_bytes_max >= message && u32::try_from(watch.large_bytes_max).is_ok(),
            "watch.large_bytes_max",
            watch.large_bytes_max,
            &format!("it must be between doors.message_bytes_max ({message}) and 4294967295"),
        )
    }

    fn check_ap(&self) -> Result<(), ConfigError> {
        let ap = &self.ap;
        for (field, value, least) in [
            (
                "ap.tombstone_retention",
                ap.tombstone_retention,
                Duration::from_secs(1),
            ),
            ("ap.clock_skew_max", ap.clock_skew_max, Duration::from_millis(10)),
            (
                "ap.repair_interval",
                ap.repair_interval,
                Duration::from_millis(10),
            ),
        ] {
            demand(
                value >= least,
                field,
                time(value),
                &format!("at least {}", time(least)),
            )?;
        }
        demand(
            ap.records_max >= 1,
            "ap.records_max",
            ap.records_max,
            "at least 1",
        )?;
        demand(
            ap.clock_skew_max < ap.tombstone_retention,
            "ap.clock_skew_max",
            time(ap.clock_skew_max),
            &format!("below ap.tombstone_retention ({})", time(ap.tombstone_retention)),
        )
    }

    fn check_storm(&self) -> Result<(), ConfigError> {
        let storm = &self.storm;
        for (field, value, least) in [
            ("storm.epoch", storm.epoch, Duration::from_millis(10)),
            ("storm.delay_max", storm.delay_max, Duration::from_millis(1)),
            (
                "storm.scheduling_lag",
                storm.scheduling_lag,
                Duration::from_millis(1),
            ),
        ] {
            demand(
                value >= least,
                field,
                time(value),
                &format!("at least {}", time(least)),
            )?;
        }
        for (field, value) in [
            ("storm.cold_per_second", u64::from(storm.cold_per_second)),
            ("storm.cold_burst", u64::from(storm.cold_burst)),
            ("storm.egress_bytes_per_second", storm.egress_bytes_per_second),
            ("storm.lists_bytes_per_second", storm.lists_bytes_per_second),
            ("storm.opens_per_second", u64::from(storm.opens_per_second)),
            ("storm.changes_per_second", storm.changes_per_second),
        ] {
            demand(value >= 1, field, value, "at least 1")?;
        }
        demand(
            (1..=99).contains(&storm.low_percent),
            "storm.low_percent",
            storm.low_percent,
            "1 to 99: below its marks, or it would engage and let go at one reading",
        )
    }

    fn check_doors(&self) -> Result<(), ConfigError> {
        let doors = &self.doors;
        demand(
            doors.request_bytes_max >= 1_024,
            "doors.request_bytes_max",
            doors.request_bytes_max,
            "at least 1024",
        )?;
        demand(
            doors.message_bytes_max >= doors.request_bytes_max,
            "doors.message_bytes_max",
            doors.message_bytes_max,
            &format!(
                "it must not be below doors.request_bytes_max ({})",
                doors.request_bytes_max
            ),
        )?;
        demand(
            !doors.write_timeout.is_zero() && doors.write_timeout <= doors.write_timeout_max,
            "doors.write_timeout",
            time(doors.write_timeout),
            &format!(
                "it must be above 0 and at most doors.write_timeout_max ({})",
                time(doors.write_timeout_max)
            ),
        )?;
        demand(
            !doors.read_timeout.is_zero(),
            "doors.read_timeout",
            time(doors.read_timeout),
            "it must be above 0",
        )?;
        for (field, value) in [
            ("doors.batch_max", doors.batch_max),
            ("doors.queries_per_stream_max", doors.queries_per_stream_max),
            ("doors.queries_waiting_max", doors.queries_waiting_max),
            ("doors.connections_max", doors.connections_max),
            ("doors.connections_burst", doors.connections_burst as usize),
            ("doors.sessions_burst", doors.sessions_burst as usize),
            (
                "doors.connections_per_second",
                doors.connections_per_second as usize,
            ),
            ("doors.sessions_per_second", doors.sessions_per_second as usize),
            (
                "doors.streams_per_connection_max",
                doors.streams_per_connection_max as usize,
            ),
        ] {
            demand(value >= 1, field, value, "at least 1")?;
        }
        demand(
            doors.header_bytes_max >= 4_096,
            "doors.header_bytes_max",
            doors.header_bytes_max,
            "at least 4096",
        )?;
        let keepalive = doors.keepalive_interval;
        demand(
            keepalive >= Duration::from_millis(100),
            "doors.keepalive_interval",
            time(keepalive),
            "at least 100ms",
        )
    }
}

fn demand(holds: bool, field: &'static str, value: impl ToString, problem: &str) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Contradiction {
        field,
        value: value.to_string(),
        problem: problem.to_owned(),
    })
}

fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn ids_of(members: &[MemberConfig]) -> String {
    members
        .iter()
        .map(|member| member.id.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn is_host_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Config {
        let mut config = Config::default();
        config.cluster.members = vec![
            "1=a:7401,a:7400,a:7402".parse().unwrap(),
            "2=b:7401,b:7400".parse().unwrap(),
        ];
        config
    }

    #[test]
    fn defaults_with_members_are_sound() {
        sound().check().unwrap();
    }

    #[test]
    fn every_contradiction_names_its_field_and_value() {
        type Spoil = fn(&mut Config);
        let cases: &[(&str, &str, Spoil)] = &[
            ("cluster.name", "a b", |c| c.cluster.name = "a b".into()),
            ("log.filter", "rollcall=loud", |c| {
                c.log.filter = "rollcall=loud".into()
            }),
            ("cluster.id", "0", |c| c.cluster.id = 0),
            ("cluster.id", "7", |c| c.cluster.id = 7),
            ("cluster.members", "empty", |c| c.cluster.members.clear()),
            ("cluster.members", "1, 1", |c| c.cluster.members[1].id = 1),
            ("cluster.members", "nowhere", |c| {
                c.cluster.members[1].peer = "nowhere".into()
            }),
            ("listen.peer", "127.0.0.1:7400", |c| {
                c.listen.peer = c.listen.client
            }),
            ("listen.http", "127.0.0.1:7401", |c| c.listen.http = c.listen.peer),
            ("listen.advertise_client", "x", |c| {
                c.listen.advertise_client = Some("x".into())
            }),
            ("raft.heartbeat_interval", "400ms", |c| {
                c.raft.heartbeat_interval = Duration::from_millis(400)
            }),
            ("raft.election_timeout_min", "1s", |c| {
                c.raft.election_timeout_min = Duration::from_secs(1)
            }),
            ("gossip.members_max", "1", |c| c.gossip.members_max = 1),
            ("gossip.seeds", "nowhere", |c| {
                c.gossip.seeds = vec!["nowhere".into()]
            }),
            ("listen.gossip", "0.0.0.0:7401", |c| {
                c.listen.peer.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into())
            }),
            ("session.ttl_default", "1s", |c| {
                c.session.ttl_default = Duration::from_secs(1)
            }),
            ("session.ttl_default", "11m", |c| {
                c.session.ttl_default = Duration::from_secs(660)
            }),
            ("watch.backlog_frames", "0", |c| c.watch.backlog_frames = 0),
            ("watch.large_bytes_max", "1", |c| c.watch.large_bytes_max = 1),
            ("ap.tombstone_retention", "10ms", |c| {
                c.ap.tombstone_retention = Duration::from_millis(10)
            }),
            ("ap.clock_skew_max", "2h", |c| {
                c.ap.clock_skew_max = Duration::from_secs(7_200)
            }),
            ("storm.epoch", "5ms", |c| c.storm.epoch = Duration::from_millis(5)),
            ("storm.cold_burst", "0", |c| c.storm.cold_burst = 0),
            ("storm.low_percent", "100", |c| c.storm.low_percent = 100),
            ("doors.write_timeout", "2m", |c| {
                c.doors.write_timeout = Duration::from_secs(120)
            }),
            ("doors.message_bytes_max", "2048", |c| {
                c.doors.message_bytes_max = 2_048;
                c.watch.response_bytes = 1_024;
            }),
        ];
        for (field, value, spoil) in cases {
            let mut config = sound();
            spoil(&mut config);
            let problem = config.check().unwrap_err().to_string();
            assert!(problem.starts_with(&format!("{field} is {value}: ")), "{problem}");
        }
    }

    #[test]
    fn a_server_that_joins_needs_no_members() {
        let mut config = Config::default();
        config.cluster.join = true;
        config.check().unwrap();
    }

    #[test]
    fn any_free_port_may_be_asked_for_thrice() {
        let mut config = sound();
        config.listen.client.set_port(0);
        config.listen.peer.set_port(0);
        config.listen.http.set_port(0);
        config.check().unwrap();
    }
}
