//! Flags and environment variables of `rollcalld`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::FalseyValueParser;

use super::{Config, ConfigError, LogFormat, MemberConfig};

/// The Rollcall server: a service registry with consensus built in.
///
/// Settings come from the file, then the environment (ROLLCALL_SET first), then flags (--set last), each over the one
/// before.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "rollcalld", version)]
pub struct Flags {
    /// Plants a bug in this server, for those who look for bugs. Never where anybody relies on it.
    #[cfg(feature = "mutants")]
    #[arg(long, env = "ROLLCALL_MUTANT", value_name = "NAME")]
    pub mutant: Option<rollcall_core::mutants::Mutant>,
    /// Lists the bugs that can be planted, and ends.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    pub mutants: bool,
    /// Runs one server by itself, for development: in ./rollcall-data unless --data says otherwise; the group `default`
    /// has auto_create on.
    #[arg(long, env = "ROLLCALL_DEV", value_parser = FalseyValueParser::new())]
    pub dev: bool,
    /// The configuration file (TOML).
    #[arg(long, env = "ROLLCALL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This server's number in the cluster, 1 or higher.
    #[arg(long, env = "ROLLCALL_ID", value_name = "N")]
    pub id: Option<u64>,
    /// The cluster's name.
    #[arg(long, env = "ROLLCALL_CLUSTER", value_name = "NAME")]
    pub cluster: Option<String>,
    /// The data folder; created if it is not there.
    #[arg(long, env = "ROLLCALL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Listens for clients (gRPC).
    #[arg(long, env = "ROLLCALL_LISTEN_CLIENT", value_name = "ADDR")]
    pub listen_client: Option<SocketAddr>,
    /// Listens for the other servers (gRPC).
    #[arg(long, env = "ROLLCALL_LISTEN_PEER", value_name = "ADDR")]
    pub listen_peer: Option<SocketAddr>,
    /// Listens for gossip among the servers (UDP); left out: where it listens for the other servers.
    #[arg(long, env = "ROLLCALL_LISTEN_GOSSIP", value_name = "ADDR")]
    pub listen_gossip: Option<SocketAddr>,
    /// Listens for heartbeats by datagram (UDP); left out: where it listens for clients.
    #[arg(long, env = "ROLLCALL_LISTEN_HEARTBEAT", value_name = "ADDR")]
    pub listen_heartbeat: Option<SocketAddr>,
    /// Listens for health checks and metrics (HTTP).
    #[arg(long, env = "ROLLCALL_LISTEN_HTTP", value_name = "ADDR")]
    pub listen_http: Option<SocketAddr>,
    /// What clients should dial, if it is not the listen address.
    #[arg(long, env = "ROLLCALL_ADVERTISE_CLIENT", value_name = "HOST:PORT")]
    pub advertise_client: Option<String>,
    /// What the other servers should dial, if it is not the listen address.
    #[arg(long, env = "ROLLCALL_ADVERTISE_PEER", value_name = "HOST:PORT")]
    pub advertise_peer: Option<String>,
    /// What the other servers should send gossip to, if it is not the listen address.
    #[arg(long, env = "ROLLCALL_ADVERTISE_GOSSIP", value_name = "HOST:PORT")]
    pub advertise_gossip: Option<String>,
    /// Where clients should send heartbeats by datagram, if it is not where they dial.
    #[arg(long, env = "ROLLCALL_ADVERTISE_HEARTBEAT", value_name = "HOST:PORT")]
    pub advertise_heartbeat: Option<String>,
    /// Where the health and metrics pages are, if it is not the listen address.
    #[arg(long, env = "ROLLCALL_ADVERTISE_HTTP", value_name = "HOST:PORT")]
    pub advertise_http: Option<String>,
    /// The founding servers: `1=PEER,CLIENT[,HTTP];2=...`.
    #[arg(
        long,
        env = "ROLLCALL_MEMBERS",
        value_name = "LIST",
        conflicts_with = "member"
    )]
    pub members: Option<String>,
    /// One founding server; repeat it for each. Not together with --members or ROLLCALL_MEMBERS.
    #[arg(long, value_name = "ID=PEER,CLIENT[,HTTP]")]
    pub member: Vec<MemberConfig>,
    /// Starts empty and waits to be added to a running cluster.
    #[arg(long, env = "ROLLCALL_JOIN", value_parser = FalseyValueParser::new())]
    pub join: bool,
    /// Log lines for people (`text`) or for collectors (`json`).
    #[arg(long, env = "ROLLCALL_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: `info`, or by module, such as `info,rollcall_server::raft=debug`.
    #[arg(long, env = "ROLLCALL_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Any setting of the file, such as `session.ttl_default=20s`; repeatable, or separated by `;`. In the
    /// environment: ROLLCALL_SET, separated by `;`; flags are laid over it one by one.
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_delimiter = ';')]
    pub set: Vec<String>,
    /// What the environment sets: an argument of its own, because flags would take the place of all of it.
    #[arg(
        long,
        env = "ROLLCALL_SET",
        value_name = "SECTION.KEY=VALUE",
        value_delimiter = ';',
        hide = true
    )]
    pub set_in_environment: Vec<String>,
    /// Prints the resulting configuration as a file and ends.
    #[arg(long)]
    pub print_config: bool,
    /// Checks the configuration and ends: 0 if it is sound.
    #[arg(long, conflicts_with = "print_config")]
    pub check_config: bool,
}

/// What a server sets up by itself once it leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Nothing.
    #[default]
    None,
    /// The group `default`, with auto_create on.
    Dev,
}

impl Flags {
    /// The preset that was asked for.
    #[must_use]
    pub fn preset(&self) -> Preset {
        if self.dev { Preset::Dev } else { Preset::None }
    }

    /// File, environment and flags in one; checked.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        config = set(config, "ROLLCALL_SET", &self.set_in_environment)?;
        let (dev, last) = (self.dev, self.set.clone());
        self.lay_over(&mut config)?;
        config = set(config, "--set", &last)?;
        if dev {
            alone(&mut config);
        }
        config.check()?;
        Ok(config)
    }

    fn lay_over(self, config: &mut Config) -> Result<(), ConfigError> {
        lay(self.id, &mut config.cluster.id);
        lay(self.cluster, &mut config.cluster.name);
        lay(self.data, &mut config.storage.data);
        lay(self.listen_client, &mut config.listen.client);
        lay(self.listen_peer, &mut config.listen.peer);
        lay(self.listen_gossip.map(Some), &mut config.listen.gossip);
        lay(self.listen_heartbeat.map(Some), &mut config.listen.heartbeat);
        lay(self.listen_http, &mut config.listen.http);
        lay(
            self.advertise_client.map(Some),
            &mut config.listen.advertise_client,
        );
        lay(self.advertise_peer.map(Some), &mut config.listen.advertise_peer);
        lay(
            self.advertise_gossip.map(Some),
            &mut config.listen.advertise_gossip,
        );
        lay(
            self.advertise_heartbeat.map(Some),
            &mut config.listen.advertise_heartbeat,
        );
        lay(self.advertise_http.map(Some), &mut config.listen.advertise_http);
        lay(self.log_format, &mut config.log.format);
        lay(self.log, &mut config.log.filter);
        config.cluster.join |= self.join;
        if let Some(list) = self.members {
            config.cluster.members = parse_members(&list)?;
        }
        if !self.member.is_empty() {
            config.cluster.members = self.member;
        }
        Ok(())
    }
}

/// Settings by the keys of the file; `by` is who says so.
fn set(mut config: Config, by: &str, settings: &[String]) -> Result<Config, ConfigError> {
    for setting in settings.iter().filter(|setting| !setting.trim().is_empty()) {
        let (key, value) = setting.split_once('=').ok_or_else(|| ConfigError::Flag {
            flag: format!("{by} {setting}"),
            problem: "it is not of the form SECTION.KEY=VALUE".into(),
        })?;
        config = config.with(key.trim(), value.trim())?;
    }
    Ok(config)
}

fn lay<T>(over: Option<T>, field: &mut T) {
    if let Some(value) = over {
        *field = value;
    }
}

fn parse_members(list: &str) -> Result<Vec<MemberConfig>, ConfigError> {
    let entries = list.split(';').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            entry.parse().map_err(|problem| ConfigError::Flag {
                flag: "--members".into(),
                problem,
            })
        })
        .collect()
}

/// A cluster of this server only. Its addresses are told once they are bound.
fn alone(config: &mut Config) {
    if config.cluster.members.is_empty() && !config.cluster.join {
        let listen = &config.listen;
        config.cluster.members = vec![MemberConfig {
            id: config.cluster.id,
            peer: listen
                .advertise_peer
                .clone()
                .unwrap_or_else(|| listen.peer.to_string()),
            client: listen
                .advertise_client
                .clone()
                .unwrap_or_else(|| listen.client.to_string()),
            http: listen
                .advertise_http
                .clone()
                .unwrap_or_else(|| listen.http.to_string()),
        }];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::try_parse_from(std::iter::once("rollcalld").chain(line.split_whitespace())).unwrap()
    }

    #[test]
    fn dev_needs_nothing_else() {
        let config = flags("--dev").into_config().unwrap();
        assert_eq!(config.cluster.members.len(), 1);
        assert_eq!(config.storage.data, PathBuf::from("./rollcall-data"));
        assert_eq!(flags("--dev").preset(), Preset::Dev);
    }

    #[test]
    fn flags_lie_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rollcalld.toml");
        std::fs::write(
            &path,
            "[cluster]\nname = \"file\"\nid = 2\n[session]\nttl_min = \"3s\"\n",
        )
        .unwrap();
        let line = format!(
            "--config {} --cluster flag --members 1=a:1,a:2;2=b:1,b:2,b:3 --set session.ttl_default=30s --log-format json",
            path.display()
        );
        let config = flags(&line).into_config().unwrap();
        assert_eq!((config.cluster.name.as_str(), config.cluster.id), ("flag", 2));
        assert_eq!(
            (
                config.session.ttl_min.as_secs(),
                config.session.ttl_default.as_secs()
            ),
            (3, 30)
        );
        assert_eq!(config.cluster.members[1].http, "b:3");
        assert_eq!(config.log.format, LogFormat::Json);
    }

    #[test]
    fn what_is_set_by_a_flag_leaves_what_the_environment_sets() {
        let line = "--dev --set-in-environment gossip.preset=wan;session.ttl_default=40s;log.filter=warn \
                    --set log.filter=debug --set cluster.id=3 --id 2";
        let config = flags(line).into_config().unwrap();
        assert_eq!(
            (config.log.filter.as_str(), config.session.ttl_default.as_secs()),
            ("debug", 40)
        );
        assert_eq!(config.gossip.preset, crate::config::GossipPreset::Wan);
        // ROLLCALL_ID says what --id does.
        assert_eq!(config.cluster.id, 3);
        let problem = flags("--dev --set-in-environment nonsense")
            .into_config()
            .unwrap_err()
            .to_string();
        assert!(problem.starts_with("ROLLCALL_SET nonsense: "), "{problem}");
    }

    #[test]
    fn members_can_be_named_one_by_one() {
        let config = flags("--member 1=a:1,a:2 --member 2=b:1,b:2 --id 2")
            .into_config()
            .unwrap();
        assert_eq!(config.cluster.members.len(), 2);
    }

    #[test]
    fn a_bad_member_list_is_named() {
        for list in ["1", "x=a:1,a:2", "1=a:1", "1=a:1,a:2,a:3,a:4"] {
            let problem = flags(&format!("--members {list}"))
                .into_config()
                .unwrap_err()
                .to_string();
            assert!(problem.starts_with("--members: "), "{problem}");
        }
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert!(Flags::try_parse_from(["rollcalld", "--deev"]).is_err());
    }
}
