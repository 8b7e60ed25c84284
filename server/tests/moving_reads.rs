//! Reads of a group while it moves from one mode to the other, at one server in this process: it is never seen empty.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{self, ErrorCode, GroupMode, ReadMode};
use support::alone::{self, key, persistent, query_by, register, view};

const NODES: usize = 20;
const MOVES: usize = 12;

/// What one look showed; nothing: the server said that it is not ready to show it.
async fn look(registry: &mut RegistryClient<Channel>, turn: u64) -> Option<(&'static str, usize)> {
    let read = |mode: ReadMode| {
        Some(v1::ReadOptions {
            mode: mode.into(),
            ..v1::ReadOptions::default()
        })
    };
    let shown = match turn % 4 {
        0 => {
            let found = registry.query(query_by("web", ReadMode::Local)).await;
            found.map(|found| ("a local query", view(found.into_inner()).nodes.len()))
        }
        1 => {
            let found = registry.query(query_by("web", ReadMode::Linearizable)).await;
            found.map(|found| ("a linearizable query", view(found.into_inner()).nodes.len()))
        }
        2 => {
            let request = v1::ListServicesRequest {
                read: read(ReadMode::Local),
                ..v1::ListServicesRequest::default()
            };
            let found = registry.list_services(request).await;
            found.map(|found| ("a list", found.into_inner().services[0].nodes as usize))
        }
        _ => {
            let request = v1::SignsRequest {
                keys: key("web").into_iter().collect(),
                read: read(ReadMode::Local),
            };
            let found = registry.signs(request).await;
            let is_empty = |found: v1::SignsResponse| found.signs[0].sign == Some(v1::Sign::default());
            found.map(|found| ("a sign", if is_empty(found.into_inner()) { 0 } else { NODES }))
        }
    };
    match shown {
        Ok(shown) => Some(shown),
        Err(status) => {
            let error = v1::Error::decode(status.details()).unwrap();
            assert_eq!(error.code(), ErrorCode::NotReady, "{error:?}");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_moves_to_and_fro_is_never_seen_empty() {
    let alone = alone::start(&[]).await;
    let nodes = (0..NODES).map(|number| persistent("web", 1_000 + number as u32));
    alone
        .registry()
        .register(register(nodes.collect()))
        .await
        .unwrap();
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..8)
        .map(|reader| {
            let (mut registry, stop, seen) = (alone.registry(), stop.clone(), seen.clone());
            tokio::spawn(async move {
                for turn in reader.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    if let Some((what, nodes)) = look(&mut registry, turn).await {
                        assert_eq!(nodes, NODES, "{what} while the group moved");
                        seen.fetch_add(1, Ordering::AcqRel);
                    }
                }
            })
        })
        .collect();
    for turn in 0..MOVES {
        let mode = if turn % 2 == 0 {
            GroupMode::Ap
        } else {
            GroupMode::Cp
        };
        let request = v1::SetGroupModeRequest {
            group: "default".into(),
            mode: mode.into(),
            ..v1::SetGroupModeRequest::default()
        };
        let moved = alone.registry().set_group_mode(request).await.unwrap();
        assert!(moved.into_inner().changed);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    stop.store(true, Ordering::Release);
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(seen.load(Ordering::Acquire) > 100, "{seen:?} looks");
    alone.server.shutdown().await;
}
