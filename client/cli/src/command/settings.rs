//! What `group put` and `service put` share: settings that are named one by one, and those that are not stay.

use std::time::Duration;

use clap::Args;
use rollcall_client::{NodeKind, v1 as wire};

use crate::flags::{Condition, Kind};
use crate::names::{self, Pair, map_of};
use crate::units::basis_points;

/// What is said behind both commands' help.
pub(crate) const UNNAMED_STAY: &str = "\
Settings that are not named stay as they are; of a new record they are the defaults. With --replace they take their
defaults in any case.";

/// How a record is put.
#[derive(Args, Clone, Debug)]
pub(crate) struct Putting {
    /// Metadata, repeatable; takes the place of all that was there
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) metadata: Vec<Pair>,
    /// Take away all metadata
    #[arg(long, conflicts_with = "metadata")]
    pub(crate) no_metadata: bool,
    /// Settings that are not named take their defaults, whatever they were
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    pub(crate) condition: Condition,
}

impl Putting {
    /// The metadata, if it is to be written.
    pub(crate) fn named_metadata(&self) -> Option<std::collections::BTreeMap<String, String>> {
        (self.no_metadata || !self.metadata.is_empty()).then(|| map_of(&self.metadata))
    }

    /// Which settings are to be written: those named, or, for `None`, all.
    pub(crate) fn fields(&self, named: Vec<String>) -> Option<Vec<String>> {
        (!self.replace).then_some(named)
    }
}

/// Settings of a service, or, in a group, of services that do not say.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Settings of services")]
pub(crate) struct ServiceFlags {
    /// Kind of nodes whose registration names none
    #[arg(long)]
    default_kind: Option<Kind>,
    /// Most nodes; 0: 5,000
    #[arg(long, value_name = "COUNT")]
    nodes_max: Option<u32>,
    /// Removal guard: how much may lapse away in a window, such as 30% (at least one node may)
    #[arg(long, value_name = "PERCENT", value_parser = basis_points)]
    guard_share: Option<u32>,
    /// Removal guard: how long a window is, from the first node that lapses away
    #[arg(long, value_name = "TIME", value_parser = names::positive_duration)]
    guard_window: Option<Duration>,
    /// Removal guard: whether the last node never lapses away
    #[arg(long, value_name = "YES|NO", value_parser = yes_or_no)]
    guard_keep_last: Option<bool>,
    /// Removal guard: how long nodes are held at most; 0s: until they return, are replaced or confirmed
    #[arg(long, value_name = "TIME", value_parser = names::duration)]
    guard_hold_max: Option<Duration>,
    /// Removal guard: nothing is ever held (a share of 100%, and the last node may go)
    #[arg(long, conflicts_with_all = ["guard_share", "guard_keep_last", "guard_default"])]
    guard_off: bool,
    /// Removal guard: its defaults
    #[arg(
        long,
        conflicts_with_all = ["guard_share", "guard_window", "guard_keep_last", "guard_hold_max"]
    )]
    guard_default: bool,
}

impl ServiceFlags {
    /// The settings that are named, and their names.
    pub(crate) fn settings(&self) -> (wire::ServiceSettings, Vec<String>) {
        let mut settings = wire::ServiceSettings {
            nodes_max: self.nodes_max.unwrap_or_default(),
            default_kind: self
                .default_kind
                .map_or(wire::NodeKind::Unspecified, wire_kind)
                .into(),
            guard: None,
            ..wire::ServiceSettings::default()
        };
        let guard = wire::GuardSettings {
            share_basis_points: if self.guard_off {
                Some(10_000)
            } else {
                self.guard_share
            },
            window_ms: self.guard_window.map(names::millis),
            keep_last: if self.guard_off {
                Some(false)
            } else {
                self.guard_keep_last
            },
            hold_max_ms: self.guard_hold_max.map(names::millis),
        };
        if guard != wire::GuardSettings::default() {
            settings.guard = Some(guard);
        }
        let named = [
            ("default_kind", self.default_kind.is_some()),
            ("nodes_max", self.nodes_max.is_some()),
            ("guard", self.guard_default),
            ("guard.share_basis_points", guard.share_basis_points.is_some()),
            ("guard.window_ms", guard.window_ms.is_some()),
            ("guard.keep_last", guard.keep_last.is_some()),
            ("guard.hold_max_ms", guard.hold_max_ms.is_some()),
        ];
        let named = named.into_iter().filter(|(_, is_named)| *is_named);
        (settings, named.map(|(name, _)| name.to_owned()).collect())
    }
}

fn wire_kind(kind: Kind) -> wire::NodeKind {
    NodeKind::from(kind).into()
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("say yes or no".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: ServiceFlags,
        #[command(flatten)]
        putting: Putting,
    }

    fn parsed(words: &str) -> Result<Line, clap::Error> {
        Line::try_parse_from(std::iter::once("put").chain(words.split_whitespace()))
    }

    fn named(words: &str) -> (wire::ServiceSettings, Vec<String>) {
        parsed(words).unwrap().flags.settings()
    }

    #[test]
    fn only_what_is_named_is_written() {
        assert_eq!(named(""), (wire::ServiceSettings::default(), Vec::new()));
        let (settings, fields) = named("--guard-share 12.5% --guard-hold-max 0s");
        let guard = settings.guard.unwrap();
        assert_eq!(
            (guard.share_basis_points, guard.hold_max_ms),
            (Some(1_250), Some(0))
        );
        assert_eq!(fields, ["guard.share_basis_points", "guard.hold_max_ms"]);
        let (settings, fields) = named("--guard-off --guard-window 2m --nodes-max 0");
        let guard = settings.guard.unwrap();
        assert_eq!(
            (guard.share_basis_points, guard.keep_last),
            (Some(10_000), Some(false))
        );
        assert_eq!(guard.window_ms, Some(120_000));
        assert_eq!(fields.len(), 4);
        assert_eq!(named("--guard-default").1, ["guard"]);
        for wrong in [
            "--guard-off --guard-share 5%",
            "--guard-default --guard-window 5m",
            "--guard-keep-last maybe",
            "--guard-share 101%",
            "--guard-window 0s",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn metadata_is_written_if_it_is_named_or_taken_away() {
        let metadata = |words: &str| parsed(words).unwrap().putting.named_metadata();
        assert_eq!(metadata(""), None);
        assert_eq!(metadata("--metadata a=1").unwrap().len(), 1);
        assert_eq!(metadata("--no-metadata").unwrap().len(), 0);
        assert!(parsed("--no-metadata --metadata a=1").is_err());
        let fields = |words: &str| parsed(words).unwrap().putting.fields(Vec::new());
        assert_eq!((fields(""), fields("--replace")), (Some(Vec::new()), None));
    }
}
