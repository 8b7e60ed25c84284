//! How the process ends: the codes scripts rely on, and the failures that lead to them.

use std::fmt;
use std::process::ExitCode;

use prost::Message;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::ErrorCode;
use tonic::Code;

/// The codes, for `--help`. A test holds this text and [`Exit`] together.
pub(crate) const CODES: &str = "\
Exit codes:
  0  ok
  1  failed for another reason (a limit, an admission rule, a token, an unsupported call, servers that differ)
  2  usage: arguments or names that can never work
  3  not found: group, service, node or session
  4  unreachable, no quorum, not ready, overloaded, disk full or too stale; nothing was changed, try again later
  5  conflict: revision mismatch, exists already, not empty, another owner, membership change under way, group not moved
  6  timeout, or the outcome of a write is unknown: look before you repeat it

Environment: ROLLCALL_ADDR (servers), ROLLCALL_TOKEN, ROLLCALL_ENVIRONMENT (as the options of these names), NO_COLOR,
ROLLCALL_LOG (the client's own log on stderr, e.g. debug)";

/// The code a process ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A closed pipe on stdout: the reader has what it wanted.
    Ok = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Unavailable = 4,
    Conflict = 5,
    Unknown = 6,
}

/// Whether the cluster may have changed although the call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Surely nothing was changed.
    None,
    /// It may have been applied; only a retry with the same request id is safe.
    Unknown,
}

/// Why a command did not do what was asked: a sentence for people, a code for scripts.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) effect: Effect,
    /// What the server called it, if a server said it.
    pub(crate) code: Option<ErrorCode>,
    /// When the server wants to be asked again, in milliseconds; 0: no hint.
    pub(crate) retry_after_ms: u32,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            effect: Effect::None,
            code: None,
            retry_after_ms: 0,
        }
    }

    /// For a reason no other code names.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The arguments can never work.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// What was named does not exist.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    /// No server could be asked; nothing was changed.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    /// A read, or a wait, that took too long; nothing was changed by it.
    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new(Exit::Unknown, message)
    }

    /// A write without an answer.
    pub(crate) fn outcome_unknown(message: impl Into<String>) -> Self {
        Self {
            effect: Effect::Unknown,
            ..Self::new(Exit::Unknown, message)
        }
    }

    /// Nobody reads our stdout any more: stop, quietly.
    pub(crate) fn closed_pipe() -> Self {
        Self::new(Exit::Ok, "")
    }

    /// Puts what was being done in front of the reason.
    pub(crate) fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// A part was done before this: that nothing was changed is not true of the whole.
    pub(crate) fn after(self, done: impl fmt::Display) -> Self {
        let exit = match self.exit {
            Exit::Unavailable => Exit::Unknown,
            exit => exit,
        };
        Self { exit, ..self }.context(done)
    }

    /// Whether the same call may do better in a moment, here or at another server.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.exit, Exit::Unavailable | Exit::Unknown) && self.code != Some(ErrorCode::DiskFull)
    }

    /// A short name of the reason, for counting.
    pub(crate) fn label(&self) -> String {
        match self.code {
            Some(code) => code
                .as_str_name()
                .trim_start_matches("ERROR_CODE_")
                .to_lowercase(),
            None => match self.exit {
                Exit::Unavailable => "unreachable".into(),
                Exit::Unknown => "timeout".into(),
                Exit::Ok | Exit::Failed | Exit::Usage | Exit::NotFound | Exit::Conflict => "failed".into(),
            },
        }
    }

    /// Says it on stderr and gives the code to end with.
    pub(crate) fn tell(&self) -> ExitCode {
        if self.exit != Exit::Ok {
            crate::talk::say(format_args!("rollcall: {self}"));
        }
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.effect == Effect::Unknown {
            f.write_str(" (it may have been applied)")?;
        }
        if self.retry_after_ms > 0 {
            write!(f, " (retry after {} ms)", self.retry_after_ms)?;
        }
        Ok(())
    }
}

impl From<wire::Error> for Failure {
    fn from(error: wire::Error) -> Self {
        let code = error.code();
        let mut message = error.message.clone();
        if message.is_empty() {
            message = code
                .as_str_name()
                .trim_start_matches("ERROR_CODE_")
                .to_lowercase()
                .replace('_', " ");
        }
        if code == ErrorCode::RevisionMismatch
            && error.current_revision > 0
            && !message.contains(&error.current_revision.to_string())
        {
            message = format!("{message} (it is at revision {})", error.current_revision);
        }
        Self {
            exit: exit_of(code),
            message,
            effect: match error.effect() {
                wire::Effect::Unknown => Effect::Unknown,
                wire::Effect::None | wire::Effect::Unspecified => Effect::None,
            },
            code: Some(code),
            retry_after_ms: error.retry_after_ms,
        }
    }
}

/// Every code the servers know, by the caller's next move.
pub(crate) fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::InvalidName | ErrorCode::InvalidArgument => Exit::Usage,
        ErrorCode::GroupNotFound
        | ErrorCode::ServiceNotFound
        | ErrorCode::NodeNotFound
        | ErrorCode::SessionNotFound => Exit::NotFound,
        ErrorCode::NotReady
        | ErrorCode::Unavailable
        | ErrorCode::Overloaded
        | ErrorCode::DiskFull
        | ErrorCode::TooStale => Exit::Unavailable,
        ErrorCode::RevisionMismatch
        | ErrorCode::AlreadyExists
        | ErrorCode::NotEmpty
        | ErrorCode::NotOwner
        | ErrorCode::SessionForeign
        | ErrorCode::RequestIdReused
        | ErrorCode::NotMoved
        | ErrorCode::Membership => Exit::Conflict,
        ErrorCode::OutcomeUnknown => Exit::Unknown,
        ErrorCode::Unspecified
        | ErrorCode::TooLarge
        | ErrorCode::QuotaExceeded
        | ErrorCode::Unsupported
        | ErrorCode::AdmissionRefused
        | ErrorCode::Unauthenticated
        | ErrorCode::NotPermitted
        | ErrorCode::Internal => Exit::Failed,
    }
}

impl From<rollcall_client::Error> for Failure {
    fn from(error: rollcall_client::Error) -> Self {
        Self {
            exit: exit_of_client(&error),
            message: sentence(&error),
            effect: match error.effect() {
                rollcall_client::Effect::None => Effect::None,
                rollcall_client::Effect::Unknown => Effect::Unknown,
            },
            code: None,
            retry_after_ms: match &error {
                rollcall_client::Error::Overloaded { retry_after, .. } => {
                    u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX)
                }
                _ => 0,
            },
        }
    }
}

/// Every error of the client, by the caller's next move.
pub(crate) fn exit_of_client(error: &rollcall_client::Error) -> Exit {
    use rollcall_client::Error as E;
    match error {
        E::InvalidName { .. } | E::InvalidArgument { .. } => Exit::Usage,
        E::GroupNotFound { .. }
        | E::ServiceNotFound { .. }
        | E::NodeNotFound { .. }
        | E::SessionNotFound { .. } => Exit::NotFound,
        E::Connection { .. }
        | E::Unavailable { .. }
        | E::NotReady { .. }
        | E::Overloaded { .. }
        | E::DiskFull { .. }
        | E::TooStale { .. } => Exit::Unavailable,
        E::RevisionMismatch { .. }
        | E::AlreadyExists { .. }
        | E::NotEmpty { .. }
        | E::NotOwner { .. }
        | E::SessionForeign { .. }
        | E::RequestIdReused { .. }
        | E::NotMoved { .. }
        | E::Membership { .. } => Exit::Conflict,
        E::OutcomeUnknown { .. } | E::DeadlineExceeded { .. } => Exit::Unknown,
        // The list may grow; what this version does not know is a plain failure.
        _ => Exit::Failed,
    }
}

/// The error, and the root of it where the error does not say it itself.
fn sentence(error: &rollcall_client::Error) -> String {
    use rollcall_client::Error as E;
    let said = match error {
        E::RevisionMismatch { current, message, .. } | E::AlreadyExists { current, message, .. }
            if *current > 0 && !message.contains(&current.to_string()) =>
        {
            format!("{message} (it is at revision {current})")
        }
        _ => error.to_string(),
    };
    match std::error::Error::source(error) {
        Some(source) => format!("{said}: {}", root_cause(source)),
        None => said,
    }
}

/// The innermost reason, which is the one a person can act on.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string().to_lowercase()
}

/// What kind of call a transport error hit: only a write can have left something behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    Read,
    Write,
}

/// The failure inside a gRPC status: Rollcall's own error where the server sent one, else the transport's.
pub(crate) fn failure_of(status: &tonic::Status, nature: Nature) -> Failure {
    if let Some(error) = wire_error(status) {
        return error.into();
    }
    let message = if status.message().is_empty() {
        status.code().description().to_lowercase()
    } else {
        status.message().to_owned()
    };
    let exit = match (status.code(), nature) {
        (Code::InvalidArgument | Code::OutOfRange, _) => Exit::Usage,
        (Code::NotFound, _) => Exit::NotFound,
        (Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted, _) => Exit::Conflict,
        (Code::DeadlineExceeded, _) => Exit::Unknown,
        // The call may have been cut off half-way.
        (Code::Unavailable | Code::Cancelled | Code::Unknown, Nature::Write) => Exit::Unknown,
        (Code::Unavailable | Code::Cancelled | Code::Unknown | Code::ResourceExhausted, _) => {
            Exit::Unavailable
        }
        (
            Code::Ok
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss,
            _,
        ) => Exit::Failed,
    };
    let effect = match (exit, nature) {
        (Exit::Unknown, Nature::Write) => Effect::Unknown,
        _ => Effect::None,
    };
    Failure {
        exit,
        message,
        effect,
        code: None,
        retry_after_ms: 0,
    }
}

fn wire_error(status: &tonic::Status) -> Option<wire::Error> {
    if status.details().is_empty() {
        return None;
    }
    let error = wire::Error::decode(status.details()).ok()?;
    (error.code() != ErrorCode::Unspecified).then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_with(code: ErrorCode, effect: wire::Effect) -> tonic::Status {
        let error = wire::Error {
            code: code.into(),
            message: "said by the server".into(),
            effect: effect.into(),
            ..wire::Error::default()
        };
        tonic::Status::with_details(Code::Unknown, "outer", error.encode_to_vec().into())
    }

    #[test]
    fn what_fails_behind_a_first_part_does_not_say_that_nothing_was_changed() {
        let behind = Failure::unavailable("no server").after("after 1000 nodes were deregistered");
        assert_eq!(behind.exit, Exit::Unknown);
        assert_eq!(behind.message, "after 1000 nodes were deregistered: no server");
        assert_eq!(Failure::not_found("it").after("after 1").exit, Exit::NotFound);
    }

    #[test]
    fn every_exit_code_is_documented() {
        for exit in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::NotFound,
            Exit::Unavailable,
            Exit::Conflict,
            Exit::Unknown,
        ] {
            assert!(
                CODES.contains(&format!("\n  {}  ", exit as u8)),
                "{exit:?} is not in the help"
            );
        }
    }

    #[test]
    fn server_errors_map_to_the_callers_next_move() {
        let cases = [
            (ErrorCode::InvalidName, Exit::Usage),
            (ErrorCode::GroupNotFound, Exit::NotFound),
            (ErrorCode::ServiceNotFound, Exit::NotFound),
            (ErrorCode::NodeNotFound, Exit::NotFound),
            (ErrorCode::SessionNotFound, Exit::NotFound),
            (ErrorCode::NotReady, Exit::Unavailable),
            (ErrorCode::Unavailable, Exit::Unavailable),
            (ErrorCode::TooStale, Exit::Unavailable),
            (ErrorCode::RevisionMismatch, Exit::Conflict),
            (ErrorCode::AlreadyExists, Exit::Conflict),
            (ErrorCode::NotEmpty, Exit::Conflict),
            (ErrorCode::NotOwner, Exit::Conflict),
            (ErrorCode::OutcomeUnknown, Exit::Unknown),
            (ErrorCode::TooLarge, Exit::Failed),
            (ErrorCode::Internal, Exit::Failed),
        ];
        for (code, exit) in cases {
            let failure = failure_of(&status_with(code, wire::Effect::None), Nature::Write);
            assert_eq!(failure.exit, exit, "{code:?}");
            assert_eq!(failure.message, "said by the server");
        }
    }

    #[test]
    fn errors_of_the_client_map_as_those_of_the_wire_do() {
        use rollcall_client::Error as E;
        let message = || "said".to_owned();
        let cases = [
            (
                E::InvalidName {
                    subject: message(),
                    message: message(),
                },
                Exit::Usage,
            ),
            (
                E::GroupNotFound {
                    group: message(),
                    message: message(),
                },
                Exit::NotFound,
            ),
            (E::SessionNotFound { message: message() }, Exit::NotFound),
            (E::Unavailable { message: message() }, Exit::Unavailable),
            (E::NotReady { message: message() }, Exit::Unavailable),
            (E::TooStale { message: message() }, Exit::Unavailable),
            (
                E::NotEmpty {
                    subject: message(),
                    message: message(),
                },
                Exit::Conflict,
            ),
            (
                E::NotOwner {
                    node: message(),
                    message: message(),
                },
                Exit::Conflict,
            ),
            (E::Membership { message: message() }, Exit::Conflict),
            (E::DeadlineExceeded { message: message() }, Exit::Unknown),
            (E::TooLarge { message: message() }, Exit::Failed),
            (
                E::AdmissionRefused {
                    subject: message(),
                    message: message(),
                },
                Exit::Failed,
            ),
        ];
        for (error, exit) in cases {
            let told = error.to_string();
            assert_eq!(Failure::from(error).exit, exit, "{told}");
        }
        let unknown = E::OutcomeUnknown {
            request_id: rollcall_client::RequestId::random(),
            message: message(),
        };
        let failure = Failure::from(unknown);
        assert_eq!((failure.exit, failure.effect), (Exit::Unknown, Effect::Unknown));
        let mismatch = E::RevisionMismatch {
            subject: message(),
            current: 41,
            message: message(),
        };
        assert_eq!(Failure::from(mismatch).to_string(), "said (it is at revision 41)");
    }

    #[test]
    fn a_write_cut_off_is_unknown_and_a_read_is_unavailable() {
        let cut = tonic::Status::unavailable("broken pipe");
        let write = failure_of(&cut, Nature::Write);
        assert_eq!((write.exit, write.effect), (Exit::Unknown, Effect::Unknown));
        assert!(write.to_string().contains("may have been applied"));
        let read = failure_of(&cut, Nature::Read);
        assert_eq!((read.exit, read.effect), (Exit::Unavailable, Effect::None));
    }

    #[test]
    fn details_that_are_no_error_of_ours_are_ignored() {
        let status = tonic::Status::with_details(Code::NotFound, "plain", vec![0xff, 0xff, 0xff].into());
        let failure = failure_of(&status, Nature::Read);
        assert_eq!(
            (failure.exit, failure.message.as_str()),
            (Exit::NotFound, "plain")
        );
    }

    #[test]
    fn the_current_revision_is_told() {
        let error = wire::Error {
            code: ErrorCode::RevisionMismatch.into(),
            message: "node changed".into(),
            current_revision: 41,
            ..wire::Error::default()
        };
        assert_eq!(
            Failure::from(error).to_string(),
            "node changed (it is at revision 41)"
        );
    }

    #[test]
    fn a_full_disk_is_not_worth_hammering() {
        let full = failure_of(
            &status_with(ErrorCode::DiskFull, wire::Effect::None),
            Nature::Write,
        );
        assert!(!full.is_passing());
        let no_leader = failure_of(
            &status_with(ErrorCode::Unavailable, wire::Effect::None),
            Nature::Write,
        );
        assert!(no_leader.is_passing());
    }
}
