//! Messages that hold an encoded part instead of a typed one, so that it is encoded once and shared.
//!
//! On the wire a `bytes` field and a message field look the same. These types stand in for the published
//! messages of the same name: what the definition calls `WatchFrame` is here its encoding.

use bytes::Bytes;

use crate::v1::{GroupMode, ResponseHeader};

/// `rollcall.v1.WatchResponse`: each element is an encoded [`crate::v1::WatchFrame`].
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WatchResponse {
    /// Encoded frames, in order.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub frames: Vec<Bytes>,
    /// The mode of the groups that all frames are about.
    #[prost(enumeration = "GroupMode", tag = "2")]
    pub mode: i32,
    /// What revisions of AP groups count: this life of the server.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// In the first message of each mode.
    #[prost(string, tag = "4")]
    pub cluster: String,
}

/// `rollcall.v1.QueryResponse`: the view is an encoded [`crate::v1::ServiceView`].
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct QueryResponse {
    /// Who answered, how, and how fresh.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// The sign the caller knows still holds; there is no view.
    #[prost(bool, tag = "2")]
    pub unchanged: bool,
    /// Encoded view.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub view: Option<Bytes>,
    /// Not 0: there is no view; keep what is held, and ask again after so many milliseconds.
    #[prost(uint32, tag = "4")]
    pub keep_cache_ms: u32,
}
