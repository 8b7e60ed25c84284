//! What people type besides keys: what to watch, `key=value`, `name=host:port`, durations.
//!
//! Keys (`group/service`, `group/service/node`) are the client's own types, which split from the right, since a
//! group is itself a path. Which characters a segment may have is for the server to say.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rollcall_client::{NodeKey, ServiceKey};
use rollcall_proto::v1 as wire;

/// What to watch: one service, or everything below a leading part of a group's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Service(ServiceKey),
    /// Without a slash at its end; empty: everything.
    Prefix(String),
}

impl FromStr for Target {
    type Err = String;

    /// `prod/feed` is a service; `prod/feed/` a prefix; `prod` can only be a prefix; `/` is everything.
    fn from_str(name: &str) -> Result<Self, String> {
        match name.strip_suffix('/') {
            Some("") => Ok(Self::Prefix(String::new())),
            Some(prefix) if prefix.split('/').any(str::is_empty) => {
                Err(format!("{name:?} has an empty part"))
            }
            Some(prefix) => Ok(Self::Prefix(prefix.into())),
            None if name.is_empty() => Err("what to watch is empty; `/` is everything".into()),
            None if !name.contains('/') => Ok(Self::Prefix(name.into())),
            None => name
                .parse()
                .map(Self::Service)
                .map_err(|e: rollcall_client::ParseKeyError| e.to_string()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => service.fmt(f),
            Self::Prefix(prefix) => write!(f, "{prefix}/"),
        }
    }
}

impl From<&Target> for wire::WatchTarget {
    fn from(target: &Target) -> Self {
        let target = match target {
            Target::Service(service) => wire::watch_target::Target::Service(service.into()),
            Target::Prefix(prefix) => wire::watch_target::Target::GroupPrefix(prefix.clone()),
        };
        Self { target: Some(target) }
    }
}

/// `key=value`; the value may be empty and may hold `=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.into(),
                value: value.into(),
            }),
            _ => Err(format!("expected key=value, got {text:?}")),
        }
    }
}

/// The last one wins where a key comes twice.
pub(crate) fn map_of(pairs: &[Pair]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|pair| (pair.key.clone(), pair.value.clone()))
        .collect()
}

/// `[name=]host:port`; the name is `default` if none is given. IPv6 hosts stand in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedAddress {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for NamedAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').unwrap_or(("default", text));
        let (host, port) = rest
            .rsplit_once(':')
            .ok_or_else(|| format!("expected [name=]host:port, got {text:?}"))?;
        let port = port
            .parse()
            .map_err(|_| format!("port {port:?} of {text:?} is not within 0-65535"))?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if bare.contains(':') && bare == host {
            return Err(format!(
                "the IPv6 host of {text:?} must stand in brackets: [{host}]:{port}"
            ));
        }
        if name.is_empty() || bare.is_empty() {
            return Err(format!("expected [name=]host:port, got {text:?}"));
        }
        Ok(Self {
            name: name.into(),
            host: bare.into(),
            port,
        })
    }
}

/// `300ms`, `15s`, `2m 30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write 300ms, 15s or 2m"))
}

/// As [`duration`], but not zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than zero".into()),
        longer => Ok(longer),
    }
}

/// Whole milliseconds as the wire wants them, at most what fits.
pub(crate) fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// One node by its name, more by their number.
pub(crate) fn plural(names: &[NodeKey]) -> String {
    match names {
        [name] => format!("node {name}"),
        names => format!("{} nodes", names.len()),
    }
}

/// A prefix as people type it: `prod`, `prod/` or `/`.
pub(crate) fn prefix_of(typed: Option<&str>) -> &str {
    typed.unwrap_or_default().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_makes_a_prefix() {
        assert_eq!("/".parse(), Ok(Target::Prefix(String::new())));
        assert_eq!("prod".parse(), Ok(Target::Prefix("prod".into())));
        assert_eq!("prod/eu/".parse(), Ok(Target::Prefix("prod/eu".into())));
        assert_eq!("prod/eu".parse(), Ok(Target::Service("prod/eu".parse().unwrap())));
        assert!("prod//".parse::<Target>().is_err());
        assert!("".parse::<Target>().is_err());
    }

    #[test]
    fn addresses_have_names_and_ports() {
        let parse = |text: &str| text.parse::<NamedAddress>();
        let address = |name: &str, host: &str, port| NamedAddress {
            name: name.into(),
            host: host.into(),
            port,
        };
        assert_eq!(parse("10.0.0.1:80"), Ok(address("default", "10.0.0.1", 80)));
        assert_eq!(
            parse("grpc=feed.local:9000"),
            Ok(address("grpc", "feed.local", 9000))
        );
        assert_eq!(parse("http=[::1]:80"), Ok(address("http", "::1", 80)));
        for bad in ["", "host", "host:", "host:70000", ":80", "=h:1", "::1:80"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pairs_keep_everything_behind_the_first_equals_sign() {
        let pair: Pair = "a=b=c".parse().unwrap();
        assert_eq!((pair.key.as_str(), pair.value.as_str()), ("a", "b=c"));
        assert_eq!("a=".parse::<Pair>().unwrap().value, "");
        assert!("=b".parse::<Pair>().is_err());
        assert!("ab".parse::<Pair>().is_err());
    }

    #[test]
    fn durations_carry_a_unit() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(duration("5").is_err());
        assert!(positive_duration("0s").is_err());
    }
}
