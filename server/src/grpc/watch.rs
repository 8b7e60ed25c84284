//! Watch streams: what the client asks goes to the hubs, what the hubs have goes to the client.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rollcall_core::directory::{GroupMode, Refusal, Sign};
use rollcall_core::ids::{GroupName, Revision, ServiceKey};
use rollcall_proto::v1::{self, watch_request, watch_server::Watch, watch_target};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, bounded};
use super::doors::Doors;
use super::listener::Peer;
use super::modes::{not_handed_over, not_taken_over};
use super::oversize;
use super::shared_body::shared;
use super::status::{DoorError, of_refusal, of_stream_end, of_subscribe, of_too_many_streams, status};
use crate::watch::{
    Division, KnownSigns, Line, PairedHandle, Parts, StreamEnd, SubscribeError, Subscription, Target,
    left_behind, shown_within,
};

/// Largest request of a watch stream: a subscription may bring many known signs.
pub(super) const WATCH_REQUEST_BYTES_MAX: usize = 8 << 20;
/// Most signs that one subscription may bring. The SDK brings 5,000; what a client holds beyond them is sent again.
const KNOWN_MAX: usize = 10_000;
/// How often a subscription that waits for AP groups to be there looks again.
const AP_LOOK: Duration = Duration::from_millis(20);

#[tonic::async_trait]
impl Watch for Doors {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // Who may not is told so without a turn.
        if let Err(error) = self.principal(&request).and_then(|_| self.reader.check_ready()) {
            return self.answer("watch", Err(error));
        }
        self.storm.open_turn().await;
        let line = request.extensions().get::<Line>().cloned();
        let peer = request.extensions().get::<Peer>();
        let cut = peer.map_or_else(CancellationToken::new, |peer| peer.cut.clone());
        let opened = self.reader.check_ready().and_then(|()| {
            let ap = self.reader.view_write_header(Revision(0));
            self.watches
                .open(self.reader.identity(), ap, cut)
                .map_err(of_too_many_streams)
        });
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => return self.answer("watch", Err(error)),
        };
        self.metrics.call("watch");
        if let Some(line) = line {
            stream.has_line(&line);
        }
        let asking = Asking {
            doors: self.clone(),
            stream: stream.handle(),
            patience_ends: None,
        };
        tokio::spawn(asking.run(request.into_inner()));
        let answers = futures_util::stream::unfold(stream, |mut stream| async move {
            let next = stream.next().await?;
            Some((next.map_err(|end| status(&of_stream_end(&end))), stream))
        });
        Ok(shared(answers.boxed(), self.limits.message_bytes_max))
    }

    async fn convergence(
        &self,
        request: Request<v1::ConvergenceRequest>,
    ) -> Result<Response<v1::ConvergenceResponse>, Status> {
        let converged = match self.principal(&request) {
            Ok(_) => self.converge(request.into_inner()).await,
            Err(error) => Err(error),
        };
        self.answer("convergence", converged)
    }
}

impl Doors {
    /// One call at a time, and beside those who serve: it looks at every watcher of what is asked about.
    async fn converge(&self, request: v1::ConvergenceRequest) -> Result<v1::ConvergenceResponse, v1::Error> {
        let broken = || {
            let reason = "the look at its watchers broke down".into();
            v1::Error::from(DoorError::NotReady { reason })
        };
        // Before the wait for a turn: what is refused anyway is not kept meanwhile.
        bounded("keys in one call", request.keys.len(), self.limits.batch_max).map_err(|e| of_refusal(&e))?;
        let turn = self.convergences.clone().acquire_owned().await;
        let turn = turn.map_err(|_| broken())?;
        let doors = self.clone();
        // It goes on counting also when nobody waits for its answer any more.
        let counting = crate::ground::spawn_blocking(move || {
            let _turn = turn;
            doors.converged(&request)
        });
        counting.await.map_err(|_| broken())?
    }

    fn converged(&self, request: &v1::ConvergenceRequest) -> Result<v1::ConvergenceResponse, v1::Error> {
        let refused = |refusal: Refusal| of_refusal(&refusal);
        let keys: Vec<ServiceKey> = request
            .keys
            .iter()
            .map(|key| convert::service_key_from("keys", Some(key)))
            .collect::<Result<_, _>>()
            .map_err(refused)?;
        let (mut cp, mut ap) = (Vec::new(), Vec::new());
        let applied = {
            let directory = self.reader.consensus().directory().read();
            for key in keys {
                match directory.group(&key.group).map(|group| group.settings.mode) {
                    Some(GroupMode::Ap) => ap.push(key),
                    Some(GroupMode::Cp) | None => cp.push((key, Revision(request.revision))),
                }
            }
            directory.revision()
        };
        let mut header = self.reader.write_header(applied);
        let mut ap_signs = Vec::with_capacity(ap.len());
        let ap = if ap.is_empty() {
            Vec::new()
        } else {
            self.reader.check_view_ready()?;
            let view = self.reader.ap().view().read();
            if cp.is_empty() {
                header = self.reader.view_write_header(view.revision());
            }
            let shown = ap.into_iter().map(|key| {
                let service = view.service(&key);
                let (sign, modified) = service.map_or((Sign::default(), Revision(0)), |service| {
                    (service.sign, service.modified)
                });
                ap_signs.push(v1::KnownSign {
                    key: Some(convert::service_key(&key)),
                    sign: Some(convert::sign(sign)),
                    metadata_hash: service.map_or(0, |service| convert::metadata_hash(service)),
                });
                (key, modified)
            });
            shown.collect()
        };
        let convergence = self.watches.convergence(&cp, &ap);
        header.read_mode = v1::ReadMode::Local.into();
        let behind = convergence
            .behind
            .into_iter()
            .map(|(client, acked, mode)| v1::WatcherBehind {
                client,
                acknowledged: acked.0,
                mode: convert::group_mode(mode).into(),
            });
        Ok(v1::ConvergenceResponse {
            header: Some(header),
            subscribers: convergence.subscribers as u64,
            current: convergence.current as u64,
            behind: behind.collect(),
            ap_signs,
        })
    }
}

/// Reads what the client asks.
struct Asking {
    doors: Doors,
    stream: PairedHandle,
    /// A subscription has waited in vain for this server to catch up; others do not wait beyond this.
    patience_ends: Option<Instant>,
}

impl Asking {
    async fn run(mut self, mut inbound: Streaming<v1::WatchRequest>) {
        let stream = self.stream.clone();
        let asking = async {
            loop {
                match inbound.message().await {
                    Ok(Some(message)) => self.take(message).await,
                    // The client has asked everything it wants; it goes on reading.
                    Ok(None) => return,
                    Err(refusal) => {
                        return match oversize::sizes(&refusal) {
                            Some(sizes) => self.stream.end(StreamEnd::Oversize { sizes: sizes.into() }),
                            None => self.stream.close(),
                        };
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = stream.closed() => {}
            () = asking => {}
        }
    }

    async fn take(&mut self, message: v1::WatchRequest) {
        if !message.client.is_empty() {
            self.stream.name(&message.client);
        }
        if !message.consumer.is_empty() {
            self.stream.name_consumer(&message.consumer);
        }
        match message.request {
            Some(watch_request::Request::Subscribe(subscribe)) => {
                let id = subscribe.subscription;
                if let Err(error) = self.subscribe(subscribe).await {
                    self.doors.metrics.error(&error);
                    self.stream.reject(id, error);
                }
            }
            Some(watch_request::Request::Unsubscribe(unsubscribe)) => {
                self.stream.unsubscribe(unsubscribe.subscription);
            }
            Some(watch_request::Request::Ack(ack)) => self.acknowledge(&ack),
            // A name alone, or something this version does not know.
            None => {}
        }
    }

    async fn subscribe(&mut self, subscribe: v1::Subscribe) -> Result<(), v1::Error> {
        self.doors.metrics.call("subscribe");
        // Judged before the wait, which the client may make as long as it likes: a request may hold much more than a wish.
        let wish = Wish::from_wire(subscribe).map_err(|e| of_refusal(&e));
        self.stream.has_been_read().await;
        let wish = wish?;
        self.doors.reader.check_ready()?;
        let after = wish.after;
        let patience = self.patience();
        if !self.doors.reader.applied(after, patience).await {
            self.patience_ends.get_or_insert(Instant::now());
            let head = self.doors.reader.consensus().directory().read().revision();
            return Err(of_subscribe(&SubscribeError::Ahead { after, head }));
        }
        loop {
            let parts = self.parts(&wish, patience).await?;
            if self.stream.must_wait(&parts).await {
                return Ok(());
            }
            match self.stream.subscribe(parts) {
                // The group's mode changed since it was looked up.
                Err(SubscribeError::Elsewhere { .. }) if Instant::now() < patience => {
                    tokio::time::sleep(AP_LOOK).await;
                }
                result => return result.map_err(|e| of_subscribe(&e)),
            }
        }
    }

    /// Where to follow it. Waits, within a bound, until the AP groups among it may be shown and are there, and those that
    /// have moved are not; and until a server that has just been started has compared what it has with another one, so
    /// that nobody who comes from there is told what was so before. If there is no other to be asked, what it has counts.
    async fn parts(&mut self, wish: &Wish, patience: Instant) -> Result<Parts, v1::Error> {
        loop {
            let place = self.doors.place_of(wish);
            let groups = &place.ap_groups;
            let shown = self.doors.check_shown(&wish.target, groups);
            let over = Instant::now() >= patience;
            match shown {
                Ok(()) if groups.is_empty() || self.doors.is_compared() => return Ok(wish.parts(&place)),
                Ok(()) | Err(_) if !over => {}
                shown => {
                    self.patience_ends.get_or_insert(Instant::now());
                    return shown.map(|()| wish.parts(&place));
                }
            }
            tokio::time::sleep(AP_LOOK).await;
        }
    }

    fn acknowledge(&self, ack: &v1::WatchAck) {
        let revision = Revision(ack.revision);
        match ack.mode() {
            v1::GroupMode::Unspecified | v1::GroupMode::Cp => self.stream.ack(GroupMode::Cp, revision),
            v1::GroupMode::Ap if ack.epoch == self.doors.reader.ap().epoch() => {
                self.stream.ack(GroupMode::Ap, revision);
            }
            // Of another life of this server, or of another server.
            v1::GroupMode::Ap => {}
        }
    }

    /// Until when a subscription may wait for a revision. After one has waited in vain, the next ones are
    /// answered at once, so that a client with many is not kept waiting for each.
    fn patience(&mut self) -> Instant {
        let wait: Duration = self.doors.watch.catch_up_wait;
        let now = Instant::now();
        match self.patience_ends {
            Some(ended) if now < ended + wait => now,
            Some(_) | None => {
                self.patience_ends = None;
                now + wait
            }
        }
    }
}

/// What a client asks to follow.
struct Wish {
    id: u64,
    target: Target,
    after: Revision,
    ap_after: Revision,
    ap_epoch: u64,
    /// Of services that it covers.
    known: KnownSigns,
    known_metadata: Arc<BTreeMap<ServiceKey, u64>>,
}

/// Where a wish is followed, as of one moment.
struct WishPlace {
    /// The replicated directory's.
    revision: Revision,
    /// What the client has seen of AP groups, if it was counted here.
    ap_after: Revision,
    /// The AP groups that the wish is about.
    ap_groups: Arc<[GroupName]>,
    /// Those of which the client holds services.
    ap_known: BTreeSet<GroupName>,
}

impl Wish {
    fn from_wire(subscribe: v1::Subscribe) -> Result<Self, Refusal> {
        bounded(
            "known signs in one subscription",
            subscribe.known.len(),
            KNOWN_MAX,
        )?;
        let target = convert::required("target", subscribe.target.and_then(|target| target.target))?;
        let target = match target {
            watch_target::Target::Service(key) => {
                Target::Service(convert::service_key_from("target", Some(&key))?)
            }
            watch_target::Target::GroupPrefix(prefix) => Target::Prefix(convert::prefix_from(&prefix)?),
        };
        let (mut signs, mut metadata) = (BTreeMap::new(), BTreeMap::new());
        for known in &subscribe.known {
            let key = convert::service_key_from("known.key", known.key.as_ref())?;
            let sign = convert::required("known.sign", known.sign.as_ref())?;
            if !target.covers(&key) {
                continue;
            }
            if known.metadata_hash != 0 {
                metadata.insert(key.clone(), known.metadata_hash);
            }
            signs.insert(key, convert::sign_from(sign));
        }
        Ok(Self {
            id: subscribe.subscription,
            target,
            after: Revision(subscribe.after_revision),
            ap_after: Revision(subscribe.ap_after_revision),
            ap_epoch: subscribe.ap_epoch,
            known: Arc::new(signs),
            known_metadata: Arc::new(metadata),
        })
    }

    /// The groups of which the client holds services, each once.
    fn known_groups(&self) -> impl Iterator<Item = &GroupName> {
        let mut last = None;
        self.known
            .keys()
            .map(|key| &key.group)
            .filter(move |group| last.replace(*group) != Some(*group))
    }

    /// What each hub is asked. Without a lock: the client may hold much.
    fn parts(&self, place: &WishPlace) -> Parts {
        let division = match &self.target {
            Target::Service(_) => None,
            Target::Prefix(_) => Some(Division {
                ap_groups: place.ap_groups.clone(),
                at: place.revision,
            }),
        };
        let cp = |known| Subscription {
            id: self.id,
            target: self.target.clone(),
            after: self.after,
            directory: Revision(0),
            known,
            known_metadata: self.known_metadata.clone(),
            division: division.clone(),
        };
        let ap = |known| Subscription {
            after: place.ap_after,
            directory: place.revision,
            ..cp(known)
        };
        match &self.target {
            Target::Service(_) if place.ap_groups.is_empty() => Parts::Cp(cp(self.known.clone())),
            Target::Service(_) => Parts::Ap(ap(self.known.clone())),
            Target::Prefix(_) => {
                let (known_cp, known_ap) = self.known_apart(&place.ap_known);
                Parts::Both {
                    cp: cp(known_cp),
                    ap: ap(known_ap),
                }
            }
        }
    }

    /// What the client holds of other groups, and of these.
    fn known_apart(&self, ap: &BTreeSet<GroupName>) -> (KnownSigns, KnownSigns) {
        if ap.is_empty() {
            return (self.known.clone(), KnownSigns::default());
        }
        let known = self.known.iter().map(|(key, sign)| (key.clone(), *sign));
        let (known_ap, known_cp) = known.partition(|(key, _)| ap.contains(&key.group));
        (Arc::new(known_cp), Arc::new(known_ap))
    }
}

impl Doors {
    fn place_of(&self, wish: &Wish) -> WishPlace {
        let ap = self.reader.ap();
        let view_head = ap.view().read().revision();
        let ap_after = match wish.ap_epoch == ap.epoch() && wish.ap_after <= view_head {
            true => wish.ap_after,
            false => Revision(0),
        };
        let directory = self.reader.consensus().directory().read();
        let is_ap = |group: &GroupName| {
            let group = directory.group(group);
            group.is_some_and(|group| group.settings.mode == GroupMode::Ap)
        };
        let ap_groups = match &wish.target {
            Target::Service(key) => Some(key.group.clone()).filter(is_ap).into_iter().collect(),
            Target::Prefix(prefix) => {
                let groups = directory
                    .groups()
                    .filter(|group| group.settings.mode == GroupMode::Ap && group.name.is_within(prefix));
                groups.map(|group| group.name.clone()).collect()
            }
        };
        let ap_known = wish.known_groups().filter(|group| is_ap(group)).cloned();
        WishPlace {
            revision: directory.revision(),
            ap_after,
            ap_groups,
            ap_known: ap_known.collect(),
        }
    }

    /// Whether what this server has of AP groups was compared with another server's since it was started.
    fn is_compared(&self) -> bool {
        self.reader.ap().has_agreed() || self.reader.consensus().members().len() == 1
    }

    /// Whether these AP groups may be shown, and are there to be shown: what is not there yet is not gone. And whether no
    /// other group of the target is shown beside them: what it was before it moved is not what it is.
    fn check_shown(&self, target: &Target, groups: &[GroupName]) -> Result<(), v1::Error> {
        if let Target::Prefix(prefix) = target {
            // One after the other: apply waits for nobody who waits for the view.
            let shown = shown_within(&self.reader.ap().view().read(), prefix);
            let left = left_behind(&self.reader.consensus().directory().read(), shown);
            if let Some(group) = left {
                return Err(not_handed_over(&group));
            }
        }
        if groups.is_empty() {
            return Ok(());
        }
        let lacking = {
            let view = self.reader.ap().view().read();
            let shown = |group: &&GroupName| {
                let group = view.group(group);
                group.is_some_and(|group| group.settings.mode == GroupMode::Ap)
            };
            groups.iter().find(|group| !shown(group))
        };
        match lacking {
            // Asked last: one that came just now may have come without what is in it.
            None => self.reader.check_view_ready(),
            Some(group) => Err(not_taken_over(group)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(group: &str, service: &str) -> v1::KnownSign {
        v1::KnownSign {
            key: Some(v1::ServiceKey {
                group: group.into(),
                service: service.into(),
            }),
            sign: Some(v1::Sign { high: 1, low: 2 }),
            metadata_hash: 3,
        }
    }

    fn prefix(prefix: &str, known: Vec<v1::KnownSign>) -> v1::Subscribe {
        let target = Some(watch_target::Target::GroupPrefix(prefix.into()));
        v1::Subscribe {
            subscription: 1,
            target: Some(v1::WatchTarget { target }),
            known,
            ..v1::Subscribe::default()
        }
    }

    #[test]
    fn a_subscription_brings_so_many_signs() {
        let signs = |count: usize| (0..count).map(|at| known("g", &at.to_string())).collect();
        assert_eq!(
            Wish::from_wire(prefix("", signs(KNOWN_MAX))).unwrap().known.len(),
            KNOWN_MAX
        );
        let refused = Wish::from_wire(prefix("", signs(KNOWN_MAX + 1))).err().unwrap();
        assert!(matches!(refused, Refusal::TooLarge { .. }), "{refused}");
    }

    #[test]
    fn of_what_a_client_holds_each_hub_is_told_what_concerns_it() {
        let held = vec![
            known("a/x", "2"),
            known("a/y", "1"),
            known("a/x", "1"),
            known("b", "1"),
        ];
        let wish = Wish::from_wire(prefix("a", held)).unwrap();
        let groups: Vec<&str> = wish.known_groups().map(GroupName::as_str).collect();
        assert_eq!(groups, ["a/x", "a/y"], "each once, and none that is not covered");
        let place = WishPlace {
            revision: Revision(7),
            ap_after: Revision(0),
            ap_groups: ["a/y".parse().unwrap()].into(),
            ap_known: ["a/y".parse().unwrap()].into(),
        };
        let Parts::Both { cp, ap } = wish.parts(&place) else {
            panic!("a prefix is followed at both");
        };
        let names = |one: &Subscription| {
            let keys = one.known.keys();
            keys.map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(&cp), ["a/x/1", "a/x/2"]);
        assert_eq!(names(&ap), ["a/y/1"]);
        assert_eq!((cp.directory, ap.directory), (Revision(0), Revision(7)));
    }
}
