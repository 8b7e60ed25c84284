//! Whose a node is that was there when it was to be registered again: its server is asked.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt, TryStreamExt, iter};
use rollcall_proto::v1;
use rollcall_proto::v1::registry_client::RegistryClient;
use tokio::time::Instant;

use super::writes::{Pending, Purpose, Step};
use super::{Attendance, Link};
use crate::config::ReadOptions;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::key::{NodeKey, RequestId};
use crate::node::{Entry, Expected, NodeKind};
use crate::session::event::SessionEvent;
use crate::session::operation::Operation;

/// Calls about whose nodes a server is asked at once, and how many of the nodes of a call.
const QUESTIONS_MAX: usize = 4;
const NODES_ASKED_MAX: usize = 16;
/// So often in a row the answer may have been overtaken; then the refusal counts.
const DOUBTS_MAX: u32 = 8;
/// Lost sessions that are remembered as ours.
const LOST_MAX: usize = 64;

pub(super) type Questions = FuturesUnordered<BoxFuture<'static, Told>>;

/// What a server said of the nodes of a call, in their order.
pub(super) struct Told {
    call: u64,
    nodes: Result<Vec<Listed>, Error>,
}

/// How a node is listed.
pub(super) enum Listed {
    Not {
        /// The server answers for all others: who is not listed there is listed nowhere.
        surely: bool,
        /// The last revision of all, if it was said.
        head: Option<u64>,
    },
    Under {
        /// 0: under none.
        session: u64,
        revision: u64,
    },
}

/// A node that was asked about, and the answer.
type Asked = (Entry, Listed);

/// Whether a refusal says that a node is not as it was thought to be.
fn is_contest(error: &Error) -> bool {
    matches!(
        error,
        Error::AlreadyExists { .. } | Error::RevisionMismatch { .. } | Error::NodeNotFound { .. }
    )
}

impl Attendance {
    /// A restoring call was refused. Whether that is not its end, because it is to be asked whose the nodes are.
    pub(super) fn doubt(&mut self, call: u64, error: &Error) -> bool {
        let Some(pending) = self.pending.get_mut(&call) else {
            return false;
        };
        let registers = matches!(pending.operation, Operation::Register(_));
        if !pending.is_restore() || !registers || !is_contest(error) || pending.doubts >= DOUBTS_MAX {
            return false;
        }
        pending.doubts += 1;
        pending.sent_at = None;
        pending.not_before = (pending.doubts > 1).then(|| Instant::now() + pending.pause.next_delay());
        pending.purpose = Purpose::Restore(Step::Ask);
        true
    }

    /// Asks the server of the stream, which is the one that refused, or left them out.
    pub(super) fn ask_whose(&mut self, now: Instant) {
        let Link::Up(up) = &self.link else { return };
        for (call, pending) in &mut self.pending {
            if !matches!(pending.purpose, Purpose::Restore(Step::Ask)) || !pending.is_due(now) {
                continue;
            }
            pending.not_before = None;
            if self.questions.len() >= QUESTIONS_MAX {
                // Asked when another one is answered.
                continue;
            }
            pending.purpose = Purpose::Restore(Step::Asked);
            let (endpoint, nodes) = (Arc::clone(&up.endpoint), pending.operation.keys());
            let told = ask(endpoint, *call, nodes, self.config.attempt_timeout);
            self.questions.push(Box::pin(told));
        }
    }

    /// The server that was asked is left: the next one says anew what is ours, and may know better of what is there.
    pub(super) fn drop_questions(&mut self) {
        self.questions.clear();
        self.pending.retain(|_, pending| !pending.contested);
        for pending in self.pending.values_mut().filter(|one| one.is_restore()) {
            let step = if pending.parting { Step::Ask } else { Step::Write };
            pending.purpose = Purpose::Restore(step);
        }
    }

    pub(super) fn on_told(&mut self, Told { call, nodes }: Told) {
        let Some(pending) = self.pending.get_mut(&call) else {
            return;
        };
        match nodes {
            Ok(nodes) => self.on_listed(call, nodes),
            Err(error) if error.is_transient() => {
                pending.purpose = Purpose::Restore(Step::Ask);
                pending.not_before = Some(Instant::now() + pending.pause.next_delay());
                self.last_error = Some(error);
                self.look_elsewhere(call, None);
            }
            Err(_) if pending.contested => {
                // What is known of them is that they are not named as ours; of some not even that.
                let mut nodes = pending.operation.keys();
                nodes.retain(|node| !self.shared.roll.lock().is_newer_than_said(node));
                self.pending.remove(&call);
                self.let_go(nodes);
                self.end_restoring();
            }
            Err(error) => self.finish(call, Err(error)),
        }
    }

    /// What is ours under another session is taken over as it was seen; what is somebody else's is let go.
    pub(super) fn on_listed(&mut self, call: u64, nodes: Vec<Listed>) {
        let own = self.lease.as_ref().map(|lease| lease.session);
        let Some(pending) = self.pending.remove(&call) else {
            return;
        };
        let Operation::Register(entries) = pending.operation else {
            return;
        };
        let listed = entries.into_iter().zip(nodes);
        let (wanted, leaving) = self.part_wanted(listed);
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        for (entry, listed) in wanted {
            match listed {
                Listed::Not { surely: true, head } if pending.contested && !self.is_lost(&entry, head) => {
                    taken.push(entry.key());
                }
                Listed::Not { .. } => rest.push(entry.expected(Expected::Absent)),
                // The server had not heard of it yet when it was to be registered there.
                Listed::Under { session, .. } if Some(session) == own => {}
                Listed::Under { session, revision } if self.lost.contains(&session) => {
                    rest.push(entry.expected(Expected::Revision(revision)));
                }
                // It stands without a session, as it is to by its service's settings: nothing is to be said of it.
                Listed::Under { session: 0, .. } if entry.registration.kind != Some(NodeKind::Ephemeral) => {}
                Listed::Under { .. } => taken.push(entry.key()),
            }
        }
        self.let_go(taken);
        self.on_leaving_listed(leaving, pending.doubts);
        if rest.is_empty() {
            return self.end_restoring();
        }
        let again = Pending {
            operation: Operation::Register(rest),
            // What it says is new.
            request_id: RequestId::random(),
            purpose: Purpose::Restore(Step::Write),
            contested: false,
            parting: false,
            refused_since: None,
            ..pending
        };
        self.pending.insert(call, again);
    }

    /// Nobody took it out: our write was lost with the servers' disks. They have not come so far again as it was, or had not when
    /// they said what the session has: what is registered again everywhere moves them on meanwhile. (A follower that lags behind
    /// our write says the same of a node that somebody takes out just then; that comes back once.)
    fn is_lost(&self, entry: &Entry, head: Option<u64>) -> bool {
        let (roll, node) = (self.shared.roll.lock(), entry.key());
        roll.is_newer_than_said(&node) || head.is_some_and(|head| roll.was_lost_by(&node, head))
    }

    /// What the roll names, and what was asked to go.
    fn part_wanted(&self, listed: impl Iterator<Item = (Entry, Listed)>) -> (Vec<Asked>, Vec<Asked>) {
        let roll = self.shared.roll.lock();
        listed.partition(|(entry, _)| roll.names(&entry.key()))
    }

    fn let_go(&mut self, mut nodes: Vec<NodeKey>) {
        {
            let mut roll = self.shared.roll.lock();
            // Whoever has taken a node out meanwhile knows that it is gone.
            nodes.retain(|node| roll.names(node));
            nodes.iter().for_each(|node| roll.strike(node));
        }
        if !nodes.is_empty() {
            self.tell(SessionEvent::NodesTaken { nodes });
        }
    }

    /// What it owned is ours wherever it is still listed.
    pub(super) fn remember_lost(&mut self, session: u64) {
        if self.lost.len() >= LOST_MAX {
            self.lost.pop_front();
        }
        self.lost.push_back(session);
    }
}

async fn ask(endpoint: Arc<Endpoint>, call: u64, nodes: Vec<NodeKey>, budget: Duration) -> Told {
    let asked = iter(nodes).map(|node| ask_about(Arc::clone(&endpoint), node, budget));
    let nodes = asked.buffered(NODES_ASKED_MAX).try_collect().await;
    Told { call, nodes }
}

pub(super) async fn ask_about(
    endpoint: Arc<Endpoint>,
    node: NodeKey,
    budget: Duration,
) -> Result<Listed, Error> {
    let request = v1::ExplainRequest {
        key: Some((&node).into()),
        read: Some(ReadOptions::default().to_wire()),
    };
    let mut client = RegistryClient::new(endpoint.channel.clone());
    let answer = match tokio::time::timeout(budget, client.explain(request)).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => match Error::from_status(status, &endpoint.address, None) {
            Error::NodeNotFound { .. } | Error::ServiceNotFound { .. } | Error::GroupNotFound { .. } => {
                return Ok(Listed::Not {
                    surely: true,
                    head: None,
                });
            }
            error => return Err(error),
        },
        Err(_) => {
            let message = format!("{} did not say whose {node} is", endpoint.address);
            return Err(Error::DeadlineExceeded { message });
        }
    };
    Ok(match answer.node {
        Some(node) => Listed::Under {
            session: node.session,
            revision: node.modified_revision,
        },
        None => {
            let header = answer.header.unwrap_or_default();
            let surely = header.mode() != v1::GroupMode::Ap;
            Listed::Not {
                surely,
                head: surely.then_some(header.revision),
            }
        }
    })
}
