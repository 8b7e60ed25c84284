//! Members change, and leadership is handed over.

use std::time::Duration;

use rollcall_core::ids::ServerId;
use tokio::time::Instant;

use super::MembershipError;
use super::servers_test::{Server, soon, start, steady_leader_of, write};

/// Servers are asked in vain if they are dead, though their log was as long.
#[tokio::test]
async fn leadership_goes_to_who_is_there_and_may_stand() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = start(folder.path(), 3, |_| {}).await;
    write(&servers[0].consensus, 1).await;
    let leading = steady_leader_of(&servers).await;
    let leader = servers[leading].consensus.clone();
    let mut others = [1_u64, 2, 3].to_vec();
    others.retain(|id| *id != leading as u64 + 1);
    let [alive, dead] = others[..] else { unreachable!() };
    // Both have the same log.
    let matched = async || {
        let members = leader.members();
        let of = |id| {
            members
                .iter()
                .find(|member| member.server.0 == id)
                .unwrap()
                .matched
        };
        of(alive) == of(dead)
    };
    while !matched().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let gone = servers.remove(dead as usize - 1);
    drop(gone.end().await);
    let there = &servers
        .iter()
        .find(|server| server.consensus.inner.options.server.0 == alive);
    let there = there.unwrap().consensus.clone();

    // It must not stand: it is not asked, by name or otherwise, and its leader goes on to lead.
    there.inner.gate.set_diverged();
    for to in [None, Some(ServerId(alive))] {
        let refused = leader.transfer_leadership(to, soon()).await;
        assert!(
            matches!(refused, Err(MembershipError::Unavailable { .. })),
            "{refused:?}"
        );
    }
    write(&leader, 2).await;

    // It may.
    let gate = &there.inner.gate;
    gate.clear_diverged();
    let deadline = Instant::now() + Duration::from_secs(5);
    leader.transfer_leadership(None, deadline).await.unwrap();
    assert_eq!(leader.leadership().borrow().leader, Some(ServerId(alive)));
    servers.into_iter().map(Server::kill).for_each(drop);
}
