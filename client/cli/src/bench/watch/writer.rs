//! The writer of the changes.

use std::sync::Arc;
use std::time::Duration;

use rollcall_client::ServiceKey;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use tokio::time::Instant;

use super::super::driver::StreamLoad;
use super::super::ground::{FILLER_KEY, filler};
use super::super::stream::{SessionStream, written};
use super::board::Board;
use crate::exit::Failure;
use crate::servers::wire_write_options;

/// The metadata that tells a change's number.
const CHANGE_KEY: &str = "change";

/// Changes the one node.
pub(super) struct Writer {
    pub(super) session: u64,
    service: ServiceKey,
    filler: String,
    timeout: Duration,
    pub(super) board: Option<Arc<Board>>,
    /// Start and distance of an open loop.
    pub(super) schedule: Option<(Instant, Duration)>,
}

impl Writer {
    pub(super) fn new(
        stream: &SessionStream,
        service: &ServiceKey,
        metadata_bytes: usize,
        timeout: Duration,
    ) -> Self {
        Self {
            session: stream.sessions().first().map_or(0, |session| session.session),
            service: service.clone(),
            filler: filler(metadata_bytes.saturating_sub(CHANGE_KEY.len() + 8)),
            timeout,
            board: None,
            schedule: None,
        }
    }

    pub(super) fn register(&self, change: u64) -> Request {
        let mut metadata = std::collections::BTreeMap::from([(CHANGE_KEY.to_owned(), change.to_string())]);
        if !self.filler.is_empty() {
            metadata.insert(FILLER_KEY.to_owned(), self.filler.clone());
        }
        Request::Register(wire::RegisterRequest {
            options: Some(wire_write_options(self.timeout)),
            proof: None,
            nodes: vec![wire::RegisterNode {
                key: Some((&self.service).into()),
                registration: Some(wire::Registration {
                    id: "changing".into(),
                    addresses: vec![wire::Address {
                        name: "http".into(),
                        host: "10.0.0.1".into(),
                        port: 80,
                    }],
                    metadata,
                    kind: wire::NodeKind::Ephemeral.into(),
                    state: wire::NodeState::Up.into(),
                    ..wire::Registration::default()
                }),
                expected: None,
            }],
        })
    }
}

impl StreamLoad for Writer {
    fn request(&mut self, call: u64) -> wire::SessionRequest {
        let change = call + 1;
        if let (Some(board), Some((start, every))) = (&self.board, self.schedule) {
            board.on_due(
                change,
                start + Duration::from_secs_f64(every.as_secs_f64() * call as f64),
            );
        }
        wire::SessionRequest {
            call,
            session: self.session,
            request: Some(self.register(change)),
        }
    }

    fn judge(&mut self, call: u64, response: Response) -> Result<u64, Failure> {
        let answer = written(response)?;
        if let Some(board) = &self.board {
            board.on_answered(call + 1, Instant::now());
        }
        Ok(u64::from(answer.changed))
    }
}

/// The number of the change that a node tells.
pub(super) fn change_of(node: &wire::Node) -> Option<u64> {
    node.metadata.get(CHANGE_KEY)?.parse().ok()
}
