//! Sessions begin and end here, on one side or on both.
//!
//! While there is a quorum a session is opened in the Raft directory and may own nodes in groups of both modes. Without one,
//! where there are AP groups, a session is opened that lives by records alone: better than none.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rollcall_core::ap::SessionSeed;
use rollcall_core::directory::{Command, Refusal};
use rollcall_core::ids::SessionId;
use rollcall_proto::v1::{self, ErrorCode, GroupMode, ResponseHeader};

use super::convert;
use super::doors::Doors;
use super::sessions;
use super::speaker::{Speaker, lives_by_records_alone};
use super::status::{self, of_refusal};
use super::write::Written;

use crate::config::SessionConfig;
use crate::raft::{Consensus, ProposeError};

/// How long no leader must be heard before a session is opened without one.
const LEADERLESS_FOR: Duration = Duration::from_secs(1);
/// How often to look.
const LEADER_LOOK: Duration = Duration::from_millis(50);

/// The ttl that is granted, and whether it is another than the one asked for.
fn granted(limits: &SessionConfig, asked_ms: u64) -> (Duration, bool) {
    let wanted = match asked_ms {
        0 => limits.ttl_default,
        asked_ms => Duration::from_millis(asked_ms),
    };
    let ttl = wanted.clamp(limits.ttl_min, limits.ttl_max);
    (ttl, ttl != wanted)
}

/// Opens a session whose stream is here.
pub(super) async fn open(doors: &Doors, open: v1::OpenSession) -> Result<(v1::Opened, Speaker), v1::Error> {
    let limits = &doors.session;
    let (ttl, clamped) = granted(limits, open.ttl_ms);
    let ttl_ms = convert::milliseconds(ttl);
    let secret: [u8; 16] = rand::random();
    let seed = SessionSeed {
        id: SessionId::default(),
        secret_digest: sessions::digest(&secret),
        ttl_ms: u32::try_from(ttl_ms).unwrap_or(u32::MAX),
        client: open.client.clone(),
    };
    let options = open.options.as_ref();
    let (id, header) = match open.mode() {
        GroupMode::Cp => in_log(doors, options, &seed).await?,
        GroupMode::Ap => by_records(doors, options, &seed).await?,
        GroupMode::Unspecified if has_ap_groups(doors) => {
            let leaderless = leaderless_for(doors.reader.consensus(), LEADERLESS_FOR);
            let opened = tokio::select! {
                opened = in_log(doors, options, &seed) => Some(opened),
                () = leaderless => None,
            };
            match opened {
                Some(Err(error)) if error.code() == ErrorCode::Unavailable => {
                    by_records(doors, options, &seed).await?
                }
                Some(opened) => opened?,
                None => by_records(doors, options, &seed).await?,
            }
        }
        GroupMode::Unspecified => in_log(doors, options, &seed).await?,
    };
    let opened = v1::Opened {
        header: Some(header),
        session: id.0,
        secret: Bytes::copy_from_slice(&secret),
        ttl_ms,
        clamped,
        ttl_min_ms: convert::milliseconds(limits.ttl_min),
        ttl_max_ms: convert::milliseconds(limits.ttl_max),
        heartbeat: doors.heartbeat.clone(),
    };
    Ok((opened, Speaker::attending(SessionSeed { id, ..seed })))
}

async fn in_log(
    doors: &Doors,
    options: Option<&v1::WriteOptions>,
    seed: &SessionSeed,
) -> Result<(SessionId, ResponseHeader), v1::Error> {
    let command = Command::OpenSession {
        secret_digest: seed.secret_digest,
        ttl_ms: seed.ttl_ms,
        client: seed.client.clone(),
    };
    let outcome = doors.writer.propose(options, command).await?;
    // One that was opened before under this request id has another secret: that was refused as another request.
    let session = outcome.session.ok_or_else(|| {
        let reason = "the answer does not name the session".into();
        status::of_propose(&ProposeError::Unknown { reason })
    })?;
    Ok((session, doors.reader.write_header(outcome.revision)))
}

async fn by_records(
    doors: &Doors,
    options: Option<&v1::WriteOptions>,
    seed: &SessionSeed,
) -> Result<(SessionId, ResponseHeader), v1::Error> {
    doors.reader.check_view_ready()?;
    // A session that was waited for in vain on the other side gets a moment all the same.
    let deadline = doors.writer.deadline(options);
    let opened = doors
        .reader
        .ap()
        .open_session(seed.secret_digest, seed.ttl_ms, seed.client.clone(), deadline)
        .await
        .map_err(|failure| status::of_propose(&failure))?;
    let revision = doors.reader.ap().view().read().revision();
    Ok((opened, doors.reader.view_write_header(revision)))
}

fn has_ap_groups(doors: &Doors) -> bool {
    doors.reader.check_view_ready().is_ok() && doors.reader.ap().view().read().groups().next().is_some()
}

/// Returns when nobody has led for so long, as far as this server knows.
async fn leaderless_for(consensus: &Consensus, least: Duration) {
    let leadership = consensus.leadership();
    let mut since = None;
    loop {
        let leading = leadership.borrow().leading;
        let led = consensus.hears_leader() && (!leading || consensus.hears_quorum());
        match (led, since) {
            (true, _) => since = None,
            (false, None) => since = Some(Instant::now()),
            (false, Some(since)) if since.elapsed() >= least => return,
            (false, Some(_)) => {}
        }
        tokio::time::sleep(LEADER_LOOK).await;
    }
}

/// Ends a session on both sides, as far as they know it. Its nodes in AP groups leave first; if that was all of it, nobody
/// waits for a leader that does not answer.
pub(super) async fn close(
    doors: &Doors,
    session: SessionId,
    options: Option<&v1::WriteOptions>,
) -> Result<Written, v1::Error> {
    let reader = &doors.reader;
    let command = || Command::CloseSession { session };
    let by_records = match reader.ap().session(session) {
        None => None,
        Some(_) => match doors.writer.write_to_view(options, command(), None).await {
            Ok(written) => Some(written),
            Err(error) if error.code() == ErrorCode::SessionNotFound => None,
            Err(error) => return Err(error),
        },
    };
    if lives_by_records_alone(reader, session) {
        return by_records.ok_or_else(|| of_refusal(&Refusal::SessionNotFound { session }));
    }
    let in_log = doors.writer.propose(options, command()).await;
    match (in_log, by_records) {
        (Ok(outcome), _) => Ok(Written::in_log(outcome)),
        (Err(error), Some(written)) if is_all(doors, session, &error) => Ok(written),
        (Err(error), _) => Err(error),
    }
}

/// Whether a session of which the log did not take the end has nothing left there but itself.
fn is_all(doors: &Doors, session: SessionId, error: &v1::Error) -> bool {
    match error.code() {
        ErrorCode::SessionNotFound => true,
        ErrorCode::Unavailable => {
            let directory = doors.reader.consensus().directory().read();
            directory
                .session(session)
                .is_none_or(|session| session.nodes.is_empty())
        }
        _ => false,
    }
}
