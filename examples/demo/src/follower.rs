//! A watcher as users have one: through the SDK, which moves it from server to server. Its removals are judged
//! like everybody's, and the timeline tells when it lost its stream and when it was live again.

use rollcall_client::{Registry, RegistryConfig, RemovalCause, WatchEvent, WatchTarget};
use rollcall_jepsen::lab::Timeline;
use tokio::task::AbortHandle;

use crate::stage::GROUP;
use crate::truth::Truth;

const NAME: &str = "sdk";

/// Ends its task when dropped.
#[derive(Debug)]
pub(crate) struct Following(AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows the demo's group.
///
/// # Errors
/// The SDK refuses the addresses.
pub(crate) async fn start(
    addresses: &[String],
    truth: Truth,
    timeline: Timeline,
) -> anyhow::Result<Following> {
    let registry =
        Registry::connect(RegistryConfig::new(addresses.iter().cloned()).client_name("demo watcher"))?;
    let mut watch = registry.watch(WatchTarget::group(GROUP)).await?;
    let task = tokio::spawn(async move {
        loop {
            match watch.next().await {
                WatchEvent::Changed { view, removed, .. } => {
                    for node in removed {
                        let node_key = format!("{}/{}", view.key, node.id);
                        if truth.judge_removal(&node_key, NAME, cause(node.cause)) {
                            timeline.note(NAME, format!("{node_key} is gone: WRONG, it lives"));
                        }
                    }
                }
                WatchEvent::Live {
                    revision,
                    resumed,
                    server,
                } => {
                    let how = if resumed {
                        "every change follows"
                    } else {
                        "from the present state"
                    };
                    timeline.note(
                        NAME,
                        format!("watches at server {server} from revision {revision}: {how}"),
                    );
                }
                WatchEvent::Interrupted { reason } => {
                    timeline.note(NAME, format!("lost its stream: {reason}"))
                }
                WatchEvent::Rejected { error } => timeline.note(NAME, format!("was refused: {error}")),
                WatchEvent::Lagged { .. } => timeline.note(NAME, "fell behind and got the present state"),
                _ => {}
            }
        }
    });
    Ok(Following(task.abort_handle()))
}

fn cause(cause: RemovalCause) -> &'static str {
    match cause {
        RemovalCause::Deregistered => "deregistered",
        RemovalCause::Expired => "expired",
        RemovalCause::SessionClosed => "session closed",
        _ => "cause not told",
    }
}
