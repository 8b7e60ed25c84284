//! What can go wrong, phrased by the caller's next move.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rollcall_proto::v1;
use tonic::{Code, Status};

use crate::key::RequestId;

/// Whether a call that failed changed anything in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Surely not.
    None,
    /// It may have, or may yet. Repeating it under the same request id is safe.
    Unknown,
}

/// Why a call failed. Unless the variant says otherwise, nothing was changed.
///
/// Calls retry by themselves, at other servers and until their deadline, where that is safe; what arrives here
/// needs a decision.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The session is dead. A [`crate::Session`] opens a new one and registers again by itself; a holder of a
    /// bare session id opens a new one.
    #[error("session was not found: {message}")]
    SessionNotFound {
        /// The server's words.
        message: String,
    },
    /// Wrong secret. Open a session of your own.
    #[error("session belongs to someone else: {message}")]
    SessionForeign {
        /// The server's words.
        message: String,
    },
    /// Read again, then retry with the revision you saw.
    #[error("{message}")]
    RevisionMismatch {
        /// The record.
        subject: String,
        /// The revision it is at.
        current: u64,
        /// The server's words, with both sides of the comparison.
        message: String,
    },
    /// It exists, and you expected it not to. Choose another name, or drop the condition.
    #[error("{message}")]
    AlreadyExists {
        /// The record.
        subject: String,
        /// The revision it is at.
        current: u64,
        /// The server's words.
        message: String,
    },
    /// Create the group, or correct the name.
    #[error("{message}")]
    GroupNotFound {
        /// Which.
        group: String,
        /// The server's words.
        message: String,
    },
    /// Create the service, correct the name, or turn on `auto_create` in its group.
    #[error("{message}")]
    ServiceNotFound {
        /// Which.
        service: String,
        /// The server's words.
        message: String,
    },
    /// It is not registered. Register it first.
    #[error("{message}")]
    NodeNotFound {
        /// Which.
        node: String,
        /// The server's words.
        message: String,
    },
    /// Another session owns the node. Register it anew to take it over, or leave it alone.
    #[error("{message}")]
    NotOwner {
        /// Which.
        node: String,
        /// The server's words.
        message: String,
    },
    /// Empty it first.
    #[error("{message}")]
    NotEmpty {
        /// What.
        subject: String,
        /// The server's words.
        message: String,
    },
    /// Make a new request id: this one was used for something else.
    #[error("{message}")]
    RequestIdReused {
        /// The server's words.
        message: String,
    },
    /// Correct the name.
    #[error("{message}")]
    InvalidName {
        /// The name.
        subject: String,
        /// What is wrong with it.
        message: String,
    },
    /// Correct the argument.
    #[error("{message}")]
    InvalidArgument {
        /// Which.
        subject: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// Send less at once, or make it smaller.
    #[error("{message}")]
    TooLarge {
        /// What is too large, with both sizes.
        message: String,
    },
    /// Remove something, or have the quota raised.
    #[error("{message}")]
    QuotaExceeded {
        /// Whose quota.
        subject: String,
        /// The server's words.
        message: String,
    },
    /// Not admitted to the group. Ask its operators.
    #[error("{message}")]
    AdmissionRefused {
        /// What was refused.
        subject: String,
        /// Why.
        message: String,
    },
    /// The servers do not know the token. Use one that stands in their token file.
    #[error("{message}")]
    Unauthenticated {
        /// The server's words.
        message: String,
    },
    /// The token, or being without one, does not permit this call. Use one with the scope that is named.
    #[error("{message}")]
    NotPermitted {
        /// What it was about.
        subject: String,
        /// Which scope is missing.
        message: String,
    },
    /// Retry later, not before `retry_after`.
    #[error("overloaded: {message}")]
    Overloaded {
        /// What the server, or a full queue of this client, asks for.
        retry_after: Duration,
        /// Which queue or budget is full.
        message: String,
    },
    /// Retry later: writes resume by themselves when the servers have space again. Reads and heartbeats go on.
    #[error("disk full: {message}")]
    DiskFull {
        /// The server's words.
        message: String,
    },
    /// No server that was asked has data yet. Retry later.
    #[error("not ready: {message}")]
    NotReady {
        /// The server's words.
        message: String,
    },
    /// No leader. Surely not applied; retry later.
    #[error("unavailable: {message}")]
    Unavailable {
        /// The server's words.
        message: String,
    },
    /// The write may have been applied, or may yet be. Read to find out, or repeat it under the same request id
    /// (see [`crate::WriteOptions::request_id`]), which applies it at most once.
    #[error("outcome of request {request_id} is unknown: {message}")]
    OutcomeUnknown {
        /// The write's name.
        request_id: RequestId,
        /// What happened last.
        message: String,
    },
    /// Every server that was asked is further behind than you allow. Allow more, or read linearizable.
    #[error("{message}")]
    TooStale {
        /// The server's words.
        message: String,
    },
    /// The group stayed in its mode. Look at what the message names, then ask again.
    #[error("{message}")]
    NotMoved {
        /// The server's words.
        message: String,
    },
    /// A membership change is under way, or this one makes no sense. Look at the members, then decide.
    #[error("{message}")]
    Membership {
        /// The server's words.
        message: String,
    },
    /// The servers do not know how to do this. Upgrade them.
    #[error("not supported: {message}")]
    Unsupported {
        /// The server's words.
        message: String,
    },
    /// No server could be reached. Surely not applied; check the addresses and the network.
    #[error("no server could be reached, last tried {server}")]
    Connection {
        /// The last one that was tried.
        server: String,
        /// What happened there.
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// A read, or a call that had not left yet, found its deadline passed. Retry, or allow more time.
    #[error("deadline passed: {message}")]
    DeadlineExceeded {
        /// What it waited for.
        message: String,
    },
    /// The handle was closed. Make a new one.
    #[error("{what} is closed")]
    Closed {
        /// What was closed.
        what: &'static str,
    },
    /// A broken promise of a server. Report it.
    #[error("internal error: {message}")]
    Internal {
        /// The server's words.
        message: String,
        /// Whether anything may have changed.
        effect: Effect,
    },
}

impl Error {
    /// Whether the call may have changed anything.
    #[must_use]
    pub fn effect(&self) -> Effect {
        match self {
            Self::OutcomeUnknown { .. } => Effect::Unknown,
            Self::Internal { effect, .. } => *effect,
            _ => Effect::None,
        }
    }

    /// Whether the same call may succeed later without anybody correcting anything. For writes, only under the
    /// same request id if [`Self::effect`] is unknown.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Overloaded { .. }
                | Self::DiskFull { .. }
                | Self::NotReady { .. }
                | Self::Unavailable { .. }
                | Self::OutcomeUnknown { .. }
                | Self::TooStale { .. }
                | Self::Connection { .. }
                | Self::DeadlineExceeded { .. }
        )
    }

    /// From the error of a stream's answer, or of a status's details.
    pub(crate) fn from_wire(error: v1::Error, request_id: Option<RequestId>) -> Self {
        use v1::ErrorCode as C;
        let v1::Error {
            code,
            message,
            effect,
            retry_after_ms,
            current_revision,
            subject,
        } = error;
        let unknown = effect == i32::from(v1::Effect::Unknown);
        let Ok(code) = C::try_from(code) else {
            // A code of a later version: all that is known is whether something may have changed.
            return Self::without_code(unknown, message, request_id);
        };
        match code {
            C::InvalidName => Self::InvalidName { subject, message },
            C::InvalidArgument => Self::InvalidArgument { subject, message },
            C::GroupNotFound => Self::GroupNotFound {
                group: subject,
                message,
            },
            C::ServiceNotFound => Self::ServiceNotFound {
                service: subject,
                message,
            },
            C::NodeNotFound => Self::NodeNotFound {
                node: subject,
                message,
            },
            C::SessionNotFound => Self::SessionNotFound { message },
            C::SessionForeign => Self::SessionForeign { message },
            C::RevisionMismatch => Self::RevisionMismatch {
                subject,
                current: current_revision,
                message,
            },
            C::AlreadyExists => Self::AlreadyExists {
                subject,
                current: current_revision,
                message,
            },
            C::NotEmpty => Self::NotEmpty { subject, message },
            C::NotOwner => Self::NotOwner {
                node: subject,
                message,
            },
            C::RequestIdReused => Self::RequestIdReused { message },
            C::TooLarge => Self::TooLarge { message },
            C::QuotaExceeded => Self::QuotaExceeded { subject, message },
            C::Overloaded => Self::Overloaded {
                retry_after: Duration::from_millis(retry_after_ms.into()),
                message,
            },
            C::DiskFull => Self::DiskFull { message },
            C::NotReady => Self::NotReady { message },
            C::Unavailable if !unknown => Self::Unavailable { message },
            C::Unavailable | C::OutcomeUnknown => Self::without_code(true, message, request_id),
            C::TooStale => Self::TooStale { message },
            C::Unsupported => Self::Unsupported { message },
            C::AdmissionRefused => Self::AdmissionRefused { subject, message },
            C::Unauthenticated => Self::Unauthenticated { message },
            C::NotPermitted => Self::NotPermitted { subject, message },
            C::NotMoved => Self::NotMoved { message },
            C::Membership => Self::Membership { message },
            C::Internal | C::Unspecified => Self::without_code(unknown, message, request_id),
        }
    }

    fn without_code(unknown: bool, message: String, request_id: Option<RequestId>) -> Self {
        match (unknown, request_id) {
            (true, Some(request_id)) => Self::OutcomeUnknown { request_id, message },
            // A read has no outcome that could matter.
            (true, None) => Self::DeadlineExceeded { message },
            (false, _) => Self::Internal {
                message,
                effect: Effect::None,
            },
        }
    }

    /// From the status of a call to `server`. `request_id` is that of a write, `None` of a read.
    pub(crate) fn from_status(status: Status, server: &str, request_id: Option<RequestId>) -> Self {
        if !status.details().is_empty()
            && let Ok(error) = v1::Error::decode(status.details())
            && error.code != 0
        {
            return Self::from_wire(error, request_id);
        }
        if is_connect_error(&status) {
            return Self::Connection {
                server: server.into(),
                source: Arc::new(status),
            };
        }
        let message = format!("{server}: {}", status.message());
        match status.code() {
            Code::InvalidArgument => Self::InvalidArgument {
                subject: String::new(),
                message,
            },
            Code::Unimplemented => Self::Unsupported { message },
            Code::OutOfRange => Self::TooLarge { message },
            Code::DeadlineExceeded | Code::Cancelled => match request_id {
                Some(request_id) => Self::OutcomeUnknown { request_id, message },
                None => Self::DeadlineExceeded { message },
            },
            Code::ResourceExhausted => Self::Overloaded {
                retry_after: Duration::ZERO,
                message,
            },
            Code::Ok
            | Code::Unknown
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unauthenticated => match request_id {
                // The connection broke with the call on it, or something between us and the server spoke.
                Some(request_id) => Self::OutcomeUnknown { request_id, message },
                None => Self::Connection {
                    server: server.into(),
                    source: Arc::new(status),
                },
            },
        }
    }

    /// Whether this refusal would also hold for an earlier attempt of the same write that is still under way: it
    /// cannot be applied any more, and was not. (Another revision than the expected one may be that attempt's own:
    /// in mode AP only the server that took it knows its request id.)
    pub(crate) fn outlaws_earlier_attempts(&self) -> bool {
        matches!(
            self,
            Self::SessionNotFound { .. }
                | Self::SessionForeign { .. }
                | Self::RequestIdReused { .. }
                | Self::InvalidName { .. }
                | Self::InvalidArgument { .. }
                | Self::TooLarge { .. }
                | Self::Unsupported { .. }
        )
    }
}

fn is_connect_error(status: &Status) -> bool {
    let mut source = StdError::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(code: v1::ErrorCode, effect: v1::Effect) -> v1::Error {
        v1::Error {
            code: code.into(),
            message: "words".into(),
            effect: effect.into(),
            retry_after_ms: 250,
            current_revision: 9,
            subject: "prod/feed".into(),
        }
    }

    fn status_of(code: v1::ErrorCode, effect: v1::Effect) -> Status {
        Status::with_details(
            Code::FailedPrecondition,
            "words",
            wire(code, effect).encode_to_vec().into(),
        )
    }

    #[test]
    fn details_of_a_status_become_typed_errors() {
        let id = Some(RequestId(7));
        let from = |code| Error::from_status(status_of(code, v1::Effect::None), "s", id);
        assert!(matches!(
            from(v1::ErrorCode::RevisionMismatch),
            Error::RevisionMismatch { current: 9, .. }
        ));
        assert!(
            matches!(from(v1::ErrorCode::GroupNotFound), Error::GroupNotFound { group, .. } if group == "prod/feed")
        );
        assert!(matches!(
            from(v1::ErrorCode::SessionNotFound),
            Error::SessionNotFound { .. }
        ));
        assert!(matches!(
            from(v1::ErrorCode::Overloaded),
            Error::Overloaded { retry_after, .. } if retry_after == Duration::from_millis(250)
        ));
        assert!(matches!(from(v1::ErrorCode::DiskFull), Error::DiskFull { .. }));
    }

    #[test]
    fn an_unknown_outcome_is_never_a_failure() {
        let id = RequestId(7);
        for code in [
            v1::ErrorCode::OutcomeUnknown,
            v1::ErrorCode::Unavailable,
            v1::ErrorCode::Internal,
        ] {
            let error = Error::from_status(status_of(code, v1::Effect::Unknown), "s", Some(id));
            assert!(
                matches!(error, Error::OutcomeUnknown { request_id, .. } if request_id == id),
                "{code:?}"
            );
            assert_eq!(error.effect(), Effect::Unknown);
        }
    }

    #[test]
    fn a_broken_connection_leaves_a_write_unknown_and_a_read_unanswered() {
        let broken = || Status::new(Code::Unavailable, "connection reset");
        assert!(matches!(
            Error::from_status(broken(), "s", Some(RequestId(1))),
            Error::OutcomeUnknown {
                request_id: RequestId(1),
                ..
            }
        ));
        assert!(matches!(
            Error::from_status(broken(), "s", None),
            Error::Connection { .. }
        ));
    }

    #[test]
    fn a_code_of_a_later_version_keeps_its_effect() {
        let later = |effect: v1::Effect| v1::Error {
            code: 999,
            effect: effect.into(),
            ..Default::default()
        };
        let id = Some(RequestId(1));
        assert!(matches!(
            Error::from_wire(later(v1::Effect::Unknown), id),
            Error::OutcomeUnknown { .. }
        ));
        assert!(matches!(
            Error::from_wire(later(v1::Effect::None), id),
            Error::Internal { .. }
        ));
    }

    #[test]
    fn damaged_details_are_not_trusted() {
        let status = Status::with_details(
            Code::InvalidArgument,
            "words",
            bytes::Bytes::from_static(b"\xff\xff"),
        );
        assert!(matches!(
            Error::from_status(status, "s", None),
            Error::InvalidArgument { .. }
        ));
    }
}
