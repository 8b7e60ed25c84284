//! What a record must look like to be let in, in one place.

use super::command::Expected;
use super::labels::Labels;
use super::limits::Limits;
use super::outcome::Refusal;
use super::record::{GroupSettings, NodeState, Override, Registration, ServiceSettings};
use crate::admission::{self, AdmissionList};
use crate::guard::GuardSettings;
use crate::ids::Revision;
use crate::mutants::{Mutant, planted};

pub(super) fn registration(limits: &Limits, registration: &Registration) -> Result<(), Refusal> {
    addresses(limits, registration)?;
    labels(limits, "labels", &registration.labels)?;
    metadata(limits, "metadata", &registration.metadata)?;
    state(registration.state)
}

/// A state that a registrant or an operator may name.
pub(super) fn state(state: NodeState) -> Result<(), Refusal> {
    match state {
        NodeState::Up | NodeState::Draining | NodeState::Down => Ok(()),
        NodeState::Suspect => Err(invalid(
            "state",
            "suspect is for the registry to say; allowed are up, draining, down",
        )),
    }
}

pub(super) fn over(limits: &Limits, over: &Override) -> Result<(), Refusal> {
    labels(limits, "override.labels", &over.labels)?;
    text(limits, "override.reason", &over.reason)?;
    text(limits, "override.author", &over.author)
}

pub(super) fn service_settings(limits: &Limits, settings: &ServiceSettings) -> Result<(), Refusal> {
    metadata(limits, "settings.metadata", &settings.metadata)?;
    guard("settings.guard", &settings.guard)
}

pub(super) fn group_settings(limits: &Limits, settings: &GroupSettings) -> Result<(), Refusal> {
    metadata(limits, "settings.metadata", &settings.metadata)?;
    metadata(limits, "settings.defaults.metadata", &settings.defaults.metadata)?;
    guard("settings.defaults.guard", &settings.defaults.guard)?;
    admission("settings.admission", &settings.admission)
}

/// A text for people.
pub(super) fn text(limits: &Limits, field: &str, text: &str) -> Result<(), Refusal> {
    at_most(field, text.len(), limits.text_bytes_max)?;
    printable(field, text)
}

/// A batch has at least one element, and no more than the limit.
pub(super) fn batch(limits: &Limits, field: &str, len: usize) -> Result<(), Refusal> {
    if len == 0 {
        return Err(invalid(field, "is empty, must hold at least one element"));
    }
    batch_or_none(limits, field, len)
}

/// A batch that may be empty.
pub(super) fn batch_or_none(limits: &Limits, field: &str, len: usize) -> Result<(), Refusal> {
    at_most(field, len, limits.batch_max)
}

/// A condition on a node: exactly the revision.
pub(super) fn expected_node(
    expected: Expected,
    current: Option<Revision>,
    subject: impl Fn() -> String,
    missing: impl Fn() -> Refusal,
) -> Result<(), Refusal> {
    match (expected, current) {
        _ if planted(Mutant::IgnoreExpected) => Ok(()),
        (Expected::Any, _) | (Expected::Absent, None) => Ok(()),
        (Expected::Absent, Some(current)) => Err(Refusal::AlreadyExists {
            subject: subject(),
            current,
        }),
        (Expected::Revision(_), None) => Err(missing()),
        (Expected::Revision(expected), Some(current)) if expected == current => Ok(()),
        (Expected::Revision(expected), Some(current)) => Err(Refusal::RevisionMismatch {
            subject: subject(),
            expected,
            current,
        }),
    }
}

/// A condition on a group or a service: its settings are as they were at the revision the caller saw, which
/// may be any from their last change up to the directory's `head`.
pub(super) fn expected_settings(
    expected: Expected,
    current: Option<Revision>,
    head: Revision,
    subject: impl Fn() -> String,
    missing: impl Fn() -> Refusal,
) -> Result<(), Refusal> {
    match (expected, current) {
        (Expected::Revision(seen), Some(current)) if current <= seen && seen <= head => Ok(()),
        (Expected::Any | Expected::Absent | Expected::Revision(_), current) => {
            expected_node(expected, current, subject, missing)
        }
    }
}

pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
    Refusal::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

fn guard(field: &str, settings: &GuardSettings) -> Result<(), Refusal> {
    settings.check().map_err(|error| {
        invalid(
            format!("{field}.{}", error.field),
            format!("is {}, must be {}", error.value, error.range),
        )
    })
}

fn admission(field: &str, list: &AdmissionList) -> Result<(), Refusal> {
    let rules = [
        ("cidrs", list.cidrs.len()),
        ("scopes", list.scopes.len()),
        ("environments", list.environments.len()),
    ];
    rules.into_iter().try_for_each(|(rule, entries)| {
        at_most(&format!("{field}.{rule}"), entries, admission::ENTRIES_MAX as u32)
    })
}

fn addresses(limits: &Limits, registration: &Registration) -> Result<(), Refusal> {
    if registration.addresses.is_empty() {
        return Err(invalid(
            "addresses",
            format!("node {} has none, must have at least one", registration.id),
        ));
    }
    at_most("addresses", registration.addresses.len(), limits.addresses_max)?;
    for (index, address) in registration.addresses.iter().enumerate() {
        at_most("address.name", address.name.len(), limits.key_bytes_max)?;
        printable("address.name", address.name)?;
        // There are few: looking through them beats a set.
        if registration
            .addresses
            .iter()
            .take(index)
            .any(|before| before.name == address.name)
        {
            return Err(invalid(
                "address.name",
                format!("{:?} is there twice, must be unique in a node", address.name),
            ));
        }
        host(limits, address.host)?;
        if address.port == 0 {
            return Err(invalid("address.port", "is 0, must be 1 to 65535"));
        }
    }
    Ok(())
}

fn host(limits: &Limits, host: &str) -> Result<(), Refusal> {
    if host.is_empty() {
        return Err(invalid(
            "address.host",
            "is empty, must be a host name or an IP address",
        ));
    }
    at_most("address.host", host.len(), limits.host_bytes_max)?;
    // Every server comes by here with every node: byte by byte.
    let allowed = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':' | b'[' | b']' | b'%')
    };
    if host.bytes().all(allowed) {
        return Ok(());
    }
    match host.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        Some(found) => Err(invalid(
            "address.host",
            format!("contains {found:?}, allowed are [A-Za-z0-9._-:[]%]"),
        )),
        None => Ok(()),
    }
}

fn labels(limits: &Limits, field: &str, labels: &Labels) -> Result<(), Refusal> {
    at_most(field, labels.len(), limits.labels_max)?;
    labels.iter().try_for_each(|(name, value)| {
        key(limits, field, name)?;
        at_most(field, value.len(), limits.label_value_bytes_max)?;
        printable(field, value)
    })
}

fn metadata(limits: &Limits, field: &str, metadata: &Labels) -> Result<(), Refusal> {
    // What takes up no more than allowed holds no more.
    if metadata.weight() > limits.metadata_bytes_max as usize {
        let bytes = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        at_most(field, bytes, limits.metadata_bytes_max)?;
    }
    metadata.iter().try_for_each(|(name, _)| key(limits, field, name))
}

fn key(limits: &Limits, field: &str, key: &str) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(invalid(field, "has an empty key"));
    }
    at_most(field, key.len(), limits.key_bytes_max)?;
    printable(field, key)
}

fn printable(field: &str, text: &str) -> Result<(), Refusal> {
    // As nearly all texts are.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(());
    }
    match text.chars().find(|c| c.is_control()) {
        Some(found) => Err(invalid(
            field,
            format!("contains the control character {found:?}"),
        )),
        None => Ok(()),
    }
}

fn at_most(what: &str, size: usize, size_max: u32) -> Result<(), Refusal> {
    let (size, size_max) = (size as u64, u64::from(size_max));
    if size > size_max {
        return Err(Refusal::TooLarge {
            what: what.into(),
            size,
            size_max,
        });
    }
    Ok(())
}
