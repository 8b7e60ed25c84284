//! Digests a posted text: SHA-256 and CRC-32.

use std::fmt::Write as _;

use axum::body::Bytes;
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use sha2::{Digest, Sha256};

#[derive(Debug, Serialize)]
struct Digests {
    bytes: usize,
    sha256: String,
    crc32: u32,
}

pub(super) fn routes() -> Router {
    Router::new().route("/digest", post(|body: Bytes| async move { Json(digest(&body)) }))
}

fn digest(body: &[u8]) -> Digests {
    Digests {
        bytes: body.len(),
        sha256: sha256_hex(body),
        crc32: crc32fast::hash(body),
    }
}

pub(crate) fn sha256_hex(body: &[u8]) -> String {
    Sha256::digest(body).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_published_ones() {
        let digests = digest(b"abc");
        assert_eq!(
            digests.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digests.crc32, 0x3524_41c2);
    }
}
