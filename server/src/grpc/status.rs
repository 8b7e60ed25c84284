//! Refusals and failures on the wire: one place, every variant by name.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use rollcall_core::admission::NotAdmitted;
use rollcall_core::directory::Refusal;
use rollcall_core::ids::{GroupName, NodeId, Revision, SessionId};
use rollcall_proto::v1::{self, Effect, ErrorCode};
use tonic::{Code, Status};

use super::convert::milliseconds;
use crate::raft::{MembershipError, ProposeError, ReadError};
use crate::session::RenewError;
use crate::watch::{StreamEnd, SubscribeError, TooManyStreams};

/// What the doors themselves refuse.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    /// Attach to the session on this stream first, with its secret.
    #[error("session {session} is not attached to this stream")]
    NotAttached { session: SessionId },
    /// It is someone else's session.
    #[error("the secret is not that of session {session}")]
    WrongSecret { session: SessionId },
    /// Ask another server.
    #[error("this server is not ready: {reason}")]
    NotReady { reason: String },
    /// Ask another server, ask again, or accept an older answer.
    #[error("{problem}")]
    TooStale { problem: String },
    /// Retry after a pause.
    #[error("{problem}")]
    Overloaded { problem: String, retry_after: Duration },
    /// Ask again, faster.
    #[error("the request did not come whole within {within:?}")]
    Unfinished { within: Duration },
    /// Look at what it names, then ask again.
    #[error("{problem}")]
    NotMoved { problem: String },
    /// Make a call for each of them.
    #[error("group {cp} is in mode cp and group {ap} in mode ap: one call serves one mode")]
    MixedModes { cp: GroupName, ap: GroupName },
    /// Ask again, here or elsewhere.
    #[error("whether session {session} lives was not decided in time")]
    Undecided { session: SessionId },
    /// Use a token that the server knows.
    #[error("{problem}")]
    Unauthenticated { problem: &'static str },
    /// Use a token with that scope.
    #[error("RC-402: {who} may not do this, it takes the scope {scope}")]
    NotPermitted { who: String, scope: String },
    /// What the reason says.
    #[error("RC-403: group {group} does not admit node {node}: {reason}")]
    NotAdmitted {
        group: GroupName,
        node: NodeId,
        reason: NotAdmitted,
    },
}

fn error(code: ErrorCode, message: impl ToString, subject: impl ToString) -> v1::Error {
    v1::Error {
        code: code.into(),
        message: message.to_string(),
        effect: Effect::None.into(),
        retry_after_ms: 0,
        current_revision: 0,
        subject: subject.to_string(),
    }
}

fn retry_ms(after: Duration) -> u32 {
    u32::try_from(milliseconds(after)).unwrap_or(u32::MAX)
}

/// A group takes no writes while it moves to the other mode, which is soon over.
const MOVING_RETRY_MS: u32 = 100;

pub(crate) fn of_refusal(refusal: &Refusal) -> v1::Error {
    let at = |code, subject: &dyn ToString, current: Revision| v1::Error {
        current_revision: current.0,
        ..error(code, refusal, subject.to_string())
    };
    match refusal {
        Refusal::GroupNotFound { group } => error(ErrorCode::GroupNotFound, refusal, group),
        Refusal::ServiceNotFound { key } => error(ErrorCode::ServiceNotFound, refusal, key),
        Refusal::NodeNotFound { key } => error(ErrorCode::NodeNotFound, refusal, key),
        Refusal::SessionNotFound { session } => error(ErrorCode::SessionNotFound, refusal, session),
        Refusal::RevisionMismatch { subject, current, .. } => {
            at(ErrorCode::RevisionMismatch, subject, *current)
        }
        Refusal::AlreadyExists { subject, current } => at(ErrorCode::AlreadyExists, subject, *current),
        Refusal::NotEmpty { subject, .. } => error(ErrorCode::NotEmpty, refusal, subject),
        Refusal::NotOwner { key } => error(ErrorCode::NotOwner, refusal, key),
        Refusal::RequestIdReused { id } => error(ErrorCode::RequestIdReused, refusal, id),
        Refusal::TooLarge { what, .. } => error(ErrorCode::TooLarge, refusal, what),
        Refusal::QuotaExceeded { subject, .. } => error(ErrorCode::QuotaExceeded, refusal, subject),
        Refusal::Name(_) => error(ErrorCode::InvalidName, refusal, ""),
        Refusal::Invalid { field, .. } => error(ErrorCode::InvalidArgument, refusal, field),
        // The door looked at an older state than the one that judged: another attempt goes to the right side.
        Refusal::OtherMode { group, .. } => error(ErrorCode::Unavailable, refusal, group),
        Refusal::Moving { group } => v1::Error {
            retry_after_ms: MOVING_RETRY_MS,
            ..error(ErrorCode::Unavailable, refusal, group)
        },
    }
}

impl From<DoorError> for v1::Error {
    fn from(door: DoorError) -> Self {
        match &door {
            DoorError::NotAttached { session } | DoorError::WrongSecret { session } => {
                error(ErrorCode::SessionForeign, &door, session)
            }
            DoorError::NotReady { .. } => error(ErrorCode::NotReady, &door, ""),
            DoorError::TooStale { .. } => error(ErrorCode::TooStale, &door, ""),
            DoorError::Overloaded { retry_after, .. } => v1::Error {
                retry_after_ms: retry_ms(*retry_after),
                ..error(ErrorCode::Overloaded, &door, "")
            },
            DoorError::Unfinished { .. } => error(ErrorCode::Unavailable, &door, ""),
            DoorError::NotMoved { .. } => error(ErrorCode::NotMoved, &door, ""),
            DoorError::MixedModes { ap, .. } => error(ErrorCode::InvalidArgument, &door, ap),
            DoorError::Undecided { session } => error(ErrorCode::Unavailable, &door, session),
            DoorError::Unauthenticated { .. } => error(ErrorCode::Unauthenticated, &door, "authorization"),
            DoorError::NotPermitted { scope, .. } => error(ErrorCode::NotPermitted, &door, scope),
            DoorError::NotAdmitted { group, .. } => error(ErrorCode::AdmissionRefused, &door, group),
        }
    }
}

/// A request that was not even decoded; `sizes` says what was found and what is allowed.
pub(crate) fn of_oversize(sizes: &str) -> v1::Error {
    error(
        ErrorCode::TooLarge,
        format!("the request is too large: {sizes}"),
        "the request in bytes",
    )
}

pub(crate) fn of_propose(failure: &ProposeError) -> v1::Error {
    match failure {
        ProposeError::Refused(refusal) => of_refusal(refusal),
        ProposeError::Unavailable { .. } => error(ErrorCode::Unavailable, failure, ""),
        ProposeError::Overloaded { retry_after } => v1::Error {
            retry_after_ms: retry_ms(*retry_after),
            ..error(ErrorCode::Overloaded, failure, "")
        },
        ProposeError::DiskFull => error(ErrorCode::DiskFull, failure, ""),
        ProposeError::Unknown { .. } => v1::Error {
            effect: Effect::Unknown.into(),
            ..error(ErrorCode::OutcomeUnknown, failure, "")
        },
    }
}

pub(crate) fn of_read(failure: &ReadError) -> v1::Error {
    match failure {
        ReadError::Unavailable { .. } => error(ErrorCode::Unavailable, failure, ""),
        ReadError::Overloaded { retry_after } => v1::Error {
            retry_after_ms: retry_ms(*retry_after),
            ..error(ErrorCode::Overloaded, failure, "")
        },
        ReadError::Diverged => error(ErrorCode::NotReady, failure, ""),
    }
}

pub(crate) fn of_membership(failure: &MembershipError) -> v1::Error {
    match failure {
        MembershipError::Invalid { .. } | MembershipError::InProgress { .. } => {
            error(ErrorCode::Membership, failure, "")
        }
        MembershipError::Unavailable { .. } => error(ErrorCode::Unavailable, failure, ""),
        MembershipError::Unknown { .. } => v1::Error {
            effect: Effect::Unknown.into(),
            ..error(ErrorCode::OutcomeUnknown, failure, "")
        },
    }
}

pub(crate) fn of_renew(failure: RenewError) -> v1::Error {
    match failure {
        RenewError::Overloaded => v1::Error {
            retry_after_ms: 100,
            ..error(ErrorCode::Overloaded, failure, "")
        },
        RenewError::Closing => error(ErrorCode::Unavailable, failure, ""),
    }
}

pub(crate) fn of_subscribe(failure: &SubscribeError) -> v1::Error {
    match failure {
        SubscribeError::ZeroId => error(ErrorCode::InvalidArgument, failure, "subscription"),
        SubscribeError::Duplicate { .. } => error(ErrorCode::AlreadyExists, failure, "subscription"),
        SubscribeError::TooMany { .. } => error(ErrorCode::TooLarge, failure, "subscriptions"),
        SubscribeError::Ahead { .. } => error(ErrorCode::NotReady, failure, "after_revision"),
        SubscribeError::Elsewhere { group } => error(ErrorCode::NotReady, failure, group),
    }
}

pub(crate) fn of_too_many_streams(failure: TooManyStreams) -> v1::Error {
    v1::Error {
        retry_after_ms: 1_000,
        ..error(ErrorCode::Overloaded, failure, "watch streams")
    }
}

pub(crate) fn of_stream_end(end: &StreamEnd) -> v1::Error {
    match end {
        StreamEnd::Moved(_) => error(ErrorCode::Unavailable, end, ""),
        StreamEnd::Unread { .. } => error(ErrorCode::Overloaded, end, ""),
        StreamEnd::Oversize { sizes } => of_oversize(sizes),
        StreamEnd::TooLarge { key, .. } => error(ErrorCode::TooLarge, end, key),
    }
}

/// A unary answer: the code for generic clients, the error itself in the details.
pub(crate) fn status(error: &v1::Error) -> Status {
    let details = Bytes::from(error.encode_to_vec());
    Status::with_details(code(error.code()), error.message.clone(), details)
}

fn code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidName | ErrorCode::InvalidArgument | ErrorCode::TooLarge => Code::InvalidArgument,
        ErrorCode::GroupNotFound
        | ErrorCode::ServiceNotFound
        | ErrorCode::NodeNotFound
        | ErrorCode::SessionNotFound => Code::NotFound,
        ErrorCode::SessionForeign
        | ErrorCode::NotOwner
        | ErrorCode::AdmissionRefused
        | ErrorCode::NotPermitted => Code::PermissionDenied,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::RevisionMismatch => Code::Aborted,
        ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::NotEmpty
        | ErrorCode::RequestIdReused
        | ErrorCode::TooStale
        | ErrorCode::Membership
        | ErrorCode::NotMoved => Code::FailedPrecondition,
        ErrorCode::QuotaExceeded | ErrorCode::Overloaded | ErrorCode::DiskFull => Code::ResourceExhausted,
        ErrorCode::NotReady | ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::OutcomeUnknown => Code::DeadlineExceeded,
        ErrorCode::Unsupported => Code::Unimplemented,
        ErrorCode::Internal | ErrorCode::Unspecified => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_is_never_called_a_failure() {
        let error = of_propose(&ProposeError::Unknown {
            reason: "no answer in time".into(),
        });
        assert_eq!(
            (error.code(), error.effect()),
            (ErrorCode::OutcomeUnknown, Effect::Unknown)
        );
        assert_eq!(status(&error).code(), Code::DeadlineExceeded);
    }

    #[test]
    fn the_error_itself_travels_in_the_details() {
        let refusal = Refusal::RevisionMismatch {
            subject: "node g/s/n".into(),
            expected: Revision(3),
            current: Revision(5),
        };
        let status = status(&of_refusal(&refusal));
        let error = v1::Error::decode(status.details()).unwrap();
        assert_eq!(
            (error.code(), error.current_revision),
            (ErrorCode::RevisionMismatch, 5)
        );
        assert_eq!(error.message, "node g/s/n is at revision 5, expected 3");
        assert_eq!(error.effect(), Effect::None);
    }
}
