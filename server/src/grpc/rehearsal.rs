//! What a storm would send, between the wire and the room that counts it.

use std::time::Duration;

use rollcall_core::directory::{GroupMode, Refusal};
use rollcall_proto::v1::{self, RehearsedEvent, rehearse_storm_request};

use super::convert;
use super::doors::Doors;
use super::status::{DoorError, of_refusal};
use super::storm::share_from;
use crate::storm::rehearsal::{Event, Subject, candidates, predict};

impl Doors {
    pub(super) async fn rehearsed(
        &self,
        request: v1::RehearseStormRequest,
    ) -> Result<v1::RehearseStormResponse, v1::Error> {
        let refused = |refusal: Refusal| of_refusal(&refusal);
        let subject = subject_from(request.subject).map_err(refused)?;
        let event = event_from(request.event).map_err(refused)?;
        let share = share_from(request.share_basis_points).map_err(refused)?;
        self.reader.check_ready()?;
        let Some(alone) = self.storm.begin_rehearsal() else {
            let problem = "another rehearsal is under way on this server".into();
            return Err(DoorError::Overloaded {
                problem,
                retry_after: Duration::from_millis(500),
            }
            .into());
        };
        let (services, revision) = {
            let directory = self.reader.consensus().directory().read();
            (
                candidates(&directory, GroupMode::Cp, &subject),
                directory.revision(),
            )
        };
        let of_view = candidates(&self.reader.ap().view().read(), GroupMode::Ap, &subject);
        let services = [services, of_view].concat();
        if let (Subject::Service(key), []) = (&subject, services.as_slice()) {
            let service = key.clone();
            return Err(refused(Refusal::ServiceNotFound { key: service }));
        }
        let (watches, pacing) = (self.watches.clone(), self.storm.pacing(share));
        // It goes on counting also when nobody waits for its answer any more.
        let counting = crate::ground::spawn_blocking(move || {
            let _alone = alone;
            predict(services, &subject, event, &watches, pacing)
        })
        .await;
        let prediction = counting.map_err(|_| {
            let reason = "the rehearsal broke down".into();
            v1::Error::from(DoorError::NotReady { reason })
        })?;
        let mut header = self.reader.write_header(revision);
        header.read_mode = v1::ReadMode::Local.into();
        Ok(v1::RehearseStormResponse {
            header: Some(header),
            services: prediction.services,
            nodes: prediction.nodes,
            watchers: prediction.watchers,
            frames_off: prediction.off.frames,
            bytes_off: prediction.off.bytes,
            frames_on: prediction.on.frames,
            bytes_on: prediction.on.bytes,
            budget_bytes_per_s: self.storm.egress_budget(),
            spread_on_ms: convert::milliseconds(prediction.spread_on),
        })
    }
}

fn subject_from(subject: Option<rehearse_storm_request::Subject>) -> Result<Subject, Refusal> {
    match convert::required("subject", subject)? {
        rehearse_storm_request::Subject::Service(key) => {
            convert::service_key_from("service", Some(&key)).map(Subject::Service)
        }
        rehearse_storm_request::Subject::Zone(zone) if zone.is_empty() => Err(Refusal::Invalid {
            field: "zone".into(),
            problem: "is empty, name one".into(),
        }),
        rehearse_storm_request::Subject::Zone(zone) => Ok(Subject::Zone(zone)),
    }
}

fn event_from(event: i32) -> Result<Event, Refusal> {
    match RehearsedEvent::try_from(event) {
        Ok(RehearsedEvent::Loss) => Ok(Event::Loss),
        Ok(RehearsedEvent::Restart) => Ok(Event::Restart),
        Ok(RehearsedEvent::Refetch) => Ok(Event::Refetch),
        Ok(RehearsedEvent::Unspecified) | Err(_) => Err(Refusal::Invalid {
            field: "event".into(),
            problem: format!("is {event}, must be loss, restart or refetch"),
        }),
    }
}
