//! Which cluster this server belongs to, and with whom.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which cluster this server belongs to, and with whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// The cluster's name. Servers refuse peers, and data folders, of another cluster. Choose it once: it is
    /// written into the data folder.
    pub name: String,
    /// This server's number, 1 or higher, unique in the cluster for ever: a replaced machine with an empty disk
    /// takes a new number.
    pub id: u64,
    /// The servers a new cluster starts with, this one included; the same list on each of them. Read only while
    /// the data folder is empty: afterwards the cluster itself knows its members (`rollcall member list`).
    pub members: Vec<MemberConfig>,
    /// Start empty and wait to be added to a running cluster (`rollcall member add`). Without it, a server with
    /// an empty data folder founds the cluster with `members`.
    pub join: bool,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: "rollcall".into(),
            id: 1,
            members: Vec::new(),
            join: false,
        }
    }
}

/// One founding server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// Its number.
    pub id: u64,
    /// `host:port` at which the other servers reach it.
    pub peer: String,
    /// `host:port` at which clients reach it.
    pub client: String,
    /// `host:port` of its health and metrics pages; empty: not told.
    #[serde(default)]
    pub http: String,
}

impl FromStr for MemberConfig {
    type Err = String;

    /// Reads `ID=PEER,CLIENT[,HTTP]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || {
            format!(
                "{text:?} is not of the form ID=PEER,CLIENT[,HTTP], such as 1=10.0.0.1:7401,10.0.0.1:7400"
            )
        };
        let (id, addresses) = text.split_once('=').ok_or_else(shape)?;
        let id = id.trim().parse().map_err(|_| shape())?;
        let mut addresses = addresses.split(',').map(|address| address.trim().to_owned());
        let (Some(peer), Some(client)) = (addresses.next(), addresses.next()) else {
            return Err(shape());
        };
        let http = addresses.next().unwrap_or_default();
        if addresses.next().is_some() {
            return Err(shape());
        }
        Ok(Self {
            id,
            peer,
            client,
            http,
        })
    }
}
