//! Frames as bytes.

use bytes::Bytes;
use prost::Message;
use rollcall_core::directory::{NodeChange, NodeView, Service, ServiceChange, ServiceFate};
use rollcall_core::ids::{Revision, ServiceKey};
use rollcall_proto::v1::{self, watch_frame::Frame};

use crate::grpc::convert;

/// A frame like [`v1::WatchFrame`] with a snapshot whose view is encoded already; on the wire they are the same.
#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotFrame {
    #[prost(message, optional, tag = "2")]
    snapshot: Option<SnapshotOfBytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotOfBytes {
    #[prost(bytes = "bytes", tag = "1")]
    view: Bytes,
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(bool, tag = "3")]
    lagged: bool,
}

/// One revision's change of one service.
pub(crate) fn change(change: &ServiceChange, revision: Revision) -> Bytes {
    if change.fate == ServiceFate::Deleted {
        return gone(&change.key, revision);
    }
    let mut put = Vec::new();
    let mut removed = Vec::new();
    for node in &change.nodes {
        match node {
            NodeChange::Put { node, over } => put.push(convert::node(NodeView::new(node, over.as_deref()))),
            NodeChange::Removed {
                id,
                incarnation,
                cause,
            } => removed.push(v1::RemovedNode {
                id: id.as_str().into(),
                cause: convert::removal_cause(*cause).into(),
                incarnation: incarnation.0,
            }),
        }
    }
    encode(Frame::Delta(v1::ServiceDelta {
        key: Some(convert::service_key(&change.key)),
        revision: revision.0,
        sign: Some(convert::sign(change.sign)),
        put,
        removed,
        settings: change.settings.as_deref().map(convert::service_settings),
        created: change.fate == ServiceFate::Created,
        guard: change.guard.as_deref().map(convert::guard_status),
        parts_after: 0,
    }))
}

/// The service is not there.
pub(crate) fn gone(key: &ServiceKey, revision: Revision) -> Bytes {
    encode(Frame::Gone(v1::ServiceGone {
        key: Some(convert::service_key(key)),
        revision: revision.0,
    }))
}

/// All that concerns the stream up to here has been said.
pub(crate) fn bookmark(revision: Revision) -> Bytes {
    encode(Frame::Bookmark(v1::Bookmark { revision: revision.0 }))
}

/// The whole service, from its encoded [`v1::ServiceView`].
pub(crate) fn snapshot(view: Bytes, revision: Revision, lagged: bool) -> Bytes {
    let snapshot = SnapshotOfBytes {
        view,
        revision: revision.0,
        lagged,
    };
    SnapshotFrame {
        snapshot: Some(snapshot),
    }
    .encode_to_vec()
    .into()
}

/// An encoded [`v1::ServiceView`].
pub(crate) fn view(service: &Service) -> Bytes {
    convert::service_view(service).encode_to_vec().into()
}

pub(crate) fn encode(frame: Frame) -> Bytes {
    v1::WatchFrame { frame: Some(frame) }.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_bytes_is_the_published_message() {
        let view = v1::ServiceView {
            key: Some(v1::ServiceKey {
                group: "g".into(),
                service: "s".into(),
            }),
            revision: 7,
            nodes: vec![v1::Node {
                id: "n".into(),
                weight: 100,
                ..Default::default()
            }],
            ..Default::default()
        };
        let bytes = snapshot(view.encode_to_vec().into(), Revision(9), true);
        let decoded = v1::WatchFrame::decode(bytes).unwrap();
        let expected = v1::ServiceSnapshot {
            view: Some(view),
            revision: 9,
            lagged: true,
        };
        assert_eq!(decoded.frame, Some(Frame::Snapshot(expected)));
    }
}
