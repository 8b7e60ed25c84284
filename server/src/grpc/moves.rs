//! An operator moves a group to the other mode.

use std::time::Duration;

use rollcall_core::directory::{GroupMode, Refusal};
use rollcall_proto::v1::{self, ErrorCode};
use tokio::time::Instant;

use super::convert;
use super::doors::Doors;
use super::status::{self, DoorError, of_refusal};
use crate::ap::{MoveError, MoveReport, ServerReport};

/// How long servers may take to be ready, if nothing is said.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// And at most: the leader ends moves that last longer than this by a good deal.
const WAIT_MAX: Duration = Duration::from_secs(100);

impl Doors {
    pub(super) async fn set_group_mode(
        &self,
        request: v1::SetGroupModeRequest,
    ) -> Result<v1::SetGroupModeResponse, v1::Error> {
        let group = convert::group_from(&request.group).map_err(|e| of_refusal(&e))?;
        let to = match request.mode() {
            v1::GroupMode::Cp => GroupMode::Cp,
            v1::GroupMode::Ap => GroupMode::Ap,
            v1::GroupMode::Unspecified => {
                return Err(of_refusal(&Refusal::Invalid {
                    field: "mode".into(),
                    problem: "is missing, must be cp or ap".into(),
                }));
            }
        };
        let wait = match request.timeout_ms {
            0 => WAIT_DEFAULT,
            ms => Duration::from_millis(ms.into()).min(WAIT_MAX),
        };
        self.reader.check_view_ready()?;
        let moved = self
            .reader
            .ap()
            .move_group(&group, to, Instant::now() + wait)
            .await;
        let report = moved.map_err(of_move)?;
        let revision = self.reader.consensus().directory().read().revision();
        Ok(response(self.reader.write_header(revision), report))
    }
}

fn of_move(error: MoveError) -> v1::Error {
    match error {
        MoveError::Propose(failure) => status::of_propose(&failure),
        MoveError::NotBegun { .. } | MoveError::TakenBack { .. } => DoorError::NotMoved {
            problem: error.to_string(),
        }
        .into(),
        MoveError::Unknown { .. } => v1::Error {
            code: ErrorCode::OutcomeUnknown.into(),
            message: error.to_string(),
            effect: v1::Effect::Unknown.into(),
            ..v1::Error::default()
        },
    }
}

fn response(header: v1::ResponseHeader, report: MoveReport) -> v1::SetGroupModeResponse {
    let server = |server: ServerReport| v1::ServerMoved {
        server: server.server.0,
        ready: server.ready,
        nodes: server.nodes,
        sign: Some(convert::sign(server.sign)),
    };
    v1::SetGroupModeResponse {
        header: Some(header),
        changed: report.changed,
        nodes: report.nodes,
        services: report.services,
        sign_before: Some(convert::sign(report.sign_before)),
        sign_after: Some(convert::sign(report.sign_after)),
        frozen_ms: convert::milliseconds(report.frozen_for),
        servers: report.servers.into_iter().map(server).collect(),
    }
}
