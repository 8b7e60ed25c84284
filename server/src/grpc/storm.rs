//! The storm switch between the wire and the rooms.

use rollcall_core::directory::Refusal;
use rollcall_core::ids::GroupName;
use rollcall_core::storm::{Mode, Modes, Record, Scope, Share};
use rollcall_proto::v1;
use tokio::time::Instant;

use super::convert;
use crate::storm::{StormDesk, StormStatus};

/// Whose switch; no name: the cluster's.
pub(crate) fn scope_from(group: &str) -> Result<Scope, Refusal> {
    if group.is_empty() {
        return Ok(Scope::Cluster);
    }
    convert::group_from(group).map(Scope::Group)
}

/// Its position; a share of 0 is the default.
pub(crate) fn mode_from(mode: i32, share: u32) -> Result<Mode, Refusal> {
    let share = || share_from(share);
    match v1::StormMode::try_from(mode) {
        Ok(v1::StormMode::Off) => Ok(Mode::Off),
        Ok(v1::StormMode::On) => Ok(Mode::On { share: share()? }),
        Ok(v1::StormMode::Auto) => Ok(Mode::Auto { share: share()? }),
        Ok(v1::StormMode::Inherited) => Ok(Mode::Inherited),
        Ok(v1::StormMode::Unspecified) | Err(_) => Err(Refusal::Invalid {
            field: "mode".into(),
            problem: format!("is {mode}, must be off, on, auto or inherited"),
        }),
    }
}

/// In basis points; 0 is the default.
pub(crate) fn share_from(share: u32) -> Result<Share, Refusal> {
    if share == 0 {
        return Ok(Share::default());
    }
    let share = u16::try_from(share).unwrap_or(u16::MAX);
    Share::from_basis_points(share).map_err(|e| Refusal::Invalid {
        field: "share_basis_points".into(),
        problem: e.to_string(),
    })
}

/// How it is set, and how it stands here.
pub(crate) fn response(modes: &Modes, status: &StormStatus, header: v1::ResponseHeader) -> v1::StormResponse {
    let engagement = status.engagement;
    let groups = modes
        .groups()
        .map(|(group, of_group)| record(Some(group), of_group, status));
    let pressure = status.pressure;
    v1::StormResponse {
        header: Some(header),
        records: std::iter::once(record(None, modes.cluster(), status))
            .chain(groups)
            .collect(),
        pressed: engagement.engaged,
        pressed_since_ms: convert::milliseconds(
            Instant::now()
                .into_std()
                .saturating_duration_since(engagement.since),
        ),
        pressed_reason: engagement.why.to_string(),
        egress_bytes_per_s: pressure.egress_bytes_per_s,
        changes_per_s: pressure.changes_per_s,
        scheduling_lag_ms: convert::milliseconds(pressure.scheduling_lag),
        lists_served: status.served,
        lists_kept: status.kept,
        changes_coalesced: status.coalesced,
    }
}

fn record(group: Option<&GroupName>, record: &Record, status: &StormStatus) -> v1::StormRecord {
    let (mode, share) = match record.mode {
        Mode::Off => (v1::StormMode::Off, None),
        // A cluster that was never told.
        Mode::Inherited => (v1::StormMode::Off, None),
        Mode::On { share } => (v1::StormMode::On, Some(share)),
        Mode::Auto { share } => (v1::StormMode::Auto, Some(share)),
    };
    v1::StormRecord {
        group: group.map_or_else(String::new, |group| group.as_str().into()),
        mode: mode.into(),
        share_basis_points: share.map_or(0, |share| share.basis_points().into()),
        author: record.author.clone(),
        reason: record.reason.clone(),
        set_at: record.set_at.0,
        engaged: StormDesk::engages(status, record.mode),
    }
}
