//! The configuration as a whole, and how its layers come together.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    ApConfig, ClusterConfig, DatagramConfig, DoorsConfig, GossipConfig, ListenConfig, LogConfig, RaftConfig,
    SessionConfig, StorageConfig, StormConfig, TokensConfig, WatchConfig,
};

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which cluster, with whom.
    pub cluster: ClusterConfig,
    /// Addresses.
    pub listen: ListenConfig,
    /// Data folder.
    pub storage: StorageConfig,
    /// Replication.
    pub raft: RaftConfig,
    /// Gossip.
    pub gossip: GossipConfig,
    /// Groups in AP mode.
    pub ap: ApConfig,
    /// Sessions.
    pub session: SessionConfig,
    /// Heartbeats by datagram.
    pub datagram: DatagramConfig,
    /// Watches.
    pub watch: WatchConfig,
    /// The storm switch.
    pub storm: StormConfig,
    /// Limits at the doors.
    pub doors: DoorsConfig,
    /// Tokens.
    pub tokens: TokensConfig,
    /// Logs.
    pub log: LogConfig,
}

/// Why the server did not start. Nothing was touched; correct what is named.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong kind.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Where, and what is wrong.
        problem: String,
    },
    /// A flag or an environment variable has a value of the wrong kind.
    #[error("{flag}: {problem}")]
    Flag {
        /// Which.
        flag: String,
        /// What is wrong.
        problem: String,
    },
    /// A value makes no sense, by itself or beside another.
    #[error("{field} is {value}: {problem}")]
    Contradiction {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        problem: String,
    },
}

impl Config {
    /// Reads a file; [`Self::check`] is the caller's next step.
    ///
    /// # Errors
    /// [`ConfigError::Read`], or [`ConfigError::File`] naming the line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|e| ConfigError::File {
            path: path.to_owned(),
            problem: e.to_string().trim_end().to_owned(),
        })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// Names the line, the key and what was expected.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The configuration with one value replaced, as `--set SECTION.KEY=VALUE` does.
    ///
    /// # Errors
    /// [`ConfigError::Flag`] if there is no such key, or the value is of the wrong kind.
    pub fn with(&self, key: &str, value: &str) -> Result<Self, ConfigError> {
        let complain = |problem: String| ConfigError::Flag {
            flag: format!("--set {key}={value}"),
            problem,
        };
        let (section, field) = key
            .split_once('.')
            .ok_or_else(|| complain("the key is not of the form SECTION.KEY".into()))?;
        let mut table = toml::Table::try_from(self).map_err(|e| complain(e.to_string()))?;
        let section = table
            .get_mut(section)
            .and_then(toml::Value::as_table_mut)
            .ok_or_else(|| complain(format!("there is no section {section:?}")))?;
        // Numbers, truth values and lists as TOML; anything else is text, quoted or not.
        let parsed = format!("value = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut t| t.remove("value"));
        section.insert(
            field.to_owned(),
            parsed.unwrap_or_else(|| toml::Value::String(value.to_owned())),
        );
        toml::Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| complain(e.message().to_owned()))
    }

    /// The configuration as a file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every section is a table of plain values")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_says_the_defaults() {
        let text = include_str!("../../../docs/rollcalld.toml");
        assert_eq!(Config::parse(text).unwrap(), Config::default());
    }

    #[test]
    fn the_example_file_names_every_key() {
        let text = include_str!("../../../docs/rollcalld.toml");
        let all: toml::Table = Config::default().to_toml().parse().unwrap();
        for (section, keys) in &all {
            assert!(
                text.contains(&format!("\n[{section}]")),
                "section {section} is not in docs/rollcalld.toml"
            );
            for key in keys.as_table().unwrap().keys() {
                assert!(
                    text.contains(&format!("\n{key} = ")),
                    "{section}.{key} is not in docs/rollcalld.toml"
                );
            }
        }
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let config = Config::default();
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_and_line() {
        for text in [
            "[session]\nttl_minn = \"2s\"\n",
            "[sesion]\n",
            "[[cluster.members]]\nid=1\nper=\"a:1\"\n",
        ] {
            let problem = Config::parse(text).unwrap_err().to_string();
            assert!(
                problem.contains("unknown field") && problem.contains("line"),
                "{problem}"
            );
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused() {
        let problem = Config::parse("[session]\nttl_min = \"soon\"\n")
            .unwrap_err()
            .to_string();
        assert!(problem.contains("\"soon\" is not a duration"), "{problem}");
        assert!(Config::parse("[listen]\nclient = \"here\"\n").is_err());
    }

    #[test]
    fn one_value_can_be_set_by_name() {
        let config = Config::default().with("session.ttl_default", "20s").unwrap();
        assert_eq!(config.session.ttl_default.as_secs(), 20);
        let config = config.with("watch.backlog_frames", "64").unwrap();
        assert_eq!(config.watch.backlog_frames, 64);
        for (key, value) in [
            ("session.nothing", "1"),
            ("nothing.x", "1"),
            ("ttl", "1"),
            ("watch.backlog_frames", "few"),
        ] {
            let problem = config.with(key, value).unwrap_err().to_string();
            assert!(problem.contains(key), "{problem}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let problem = Config::read(Path::new("/nonexistent/rollcalld.toml"))
            .unwrap_err()
            .to_string();
        assert!(problem.contains("/nonexistent/rollcalld.toml"), "{problem}");
    }
}
