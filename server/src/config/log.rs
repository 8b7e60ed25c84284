//! What is logged, and how. Logs go to standard error.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What is logged, and how. Logs go to standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` for people, `json` (an object a line) for collectors.
    pub format: LogFormat,
    /// Which events: `info`, or by module, such as `info,rollcall_server::raft=debug`. `debug` logs each request,
    /// `trace` each packet; both cost throughput. With `openraft=warn` Raft tells of each message that a silent member did not
    /// answer, ten times a second and more.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info,openraft=error".into(),
        }
    }
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}
