//! The group a bench works in: made for it, deleted after it.

use std::time::Duration;

use rollcall_client::{Error, Expected, ReadOptions, Registry, Removal, ServiceKey};
use rollcall_proto::v1 as wire;

use crate::context::Context;
use crate::exit::{Effect, Failure};
use crate::flags::Mode;
use crate::progress::Progress;
use crate::servers::plain;
use crate::talk::say;

/// Most nodes of one call.
const BATCH_MAX: usize = 1_000;
/// How often deleting is tried while sessions of the bench are still leaving.
const CLEAR_TRIES: u32 = 20;
/// The pause between two tries.
const CLEAR_PAUSE: Duration = Duration::from_millis(250);

/// A group with services, of this run alone.
#[derive(Debug)]
pub(crate) struct Ground {
    registry: Registry,
    group: String,
    mode: Mode,
    services: Vec<ServiceKey>,
}

impl Ground {
    /// Makes the group and its services; each may hold `nodes_max` nodes.
    pub(crate) async fn lay(context: &Context, services: usize, nodes_max: usize) -> Result<Self, Failure> {
        Self::lay_in(Mode::Cp, context, services, nodes_max).await
    }

    /// The same, the group replicated in this way.
    pub(crate) async fn lay_in(
        mode: Mode,
        context: &Context,
        services: usize,
        nodes_max: usize,
    ) -> Result<Self, Failure> {
        let group = format!("bench-{:08x}", rand::random::<u32>());
        let ground = Self {
            registry: context.servers.registry().clone(),
            services: (0..services)
                .map(|index| ServiceKey::new(&group, format!("service-{index}")))
                .collect(),
            group,
            mode,
        };
        match ground.make_group().await {
            // Surely nothing was made, so there is nothing to delete.
            Err(failure) if failure.effect == Effect::None => return Err(failure),
            Err(failure) => {
                ground.clear_up().await;
                return Err(failure);
            }
            Ok(()) => {}
        }
        match ground.make_services(nodes_max).await {
            Ok(()) => Ok(ground),
            Err(failure) => {
                ground.clear_up().await;
                Err(failure)
            }
        }
    }

    async fn make_group(&self) -> Result<(), Failure> {
        let group = wire::GroupSettings {
            mode: self.mode.to_wire().into(),
            services_max: u32::try_from(self.services.len()).unwrap_or(u32::MAX),
            ..wire::GroupSettings::default()
        };
        self.registry
            .put_group(&self.group, group, Expected::Absent, plain())
            .await?;
        Ok(())
    }

    async fn make_services(&self, nodes_max: usize) -> Result<(), Failure> {
        let settings = wire::ServiceSettings {
            nodes_max: u32::try_from(nodes_max).unwrap_or(u32::MAX),
            ..wire::ServiceSettings::default()
        };
        for service in &self.services {
            self.registry
                .put_service(service, Some(settings.clone()), Expected::Absent, plain())
                .await?;
        }
        Ok(())
    }

    /// Its services.
    pub(crate) fn services(&self) -> &[ServiceKey] {
        &self.services
    }

    /// Its name.
    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// Registers static nodes in every service, so that there is something to read.
    pub(crate) async fn fill(&self, nodes: usize, metadata: &str) -> Result<(), Failure> {
        let progress = Progress::of((self.services.len() * nodes) as u64, "registering nodes to read");
        for service in &self.services {
            self.fill_with(service, nodes, metadata, &progress).await?;
        }
        progress.finish();
        Ok(())
    }

    /// The same in one service.
    pub(crate) async fn fill_one(
        &self,
        service: &ServiceKey,
        nodes: usize,
        metadata: &str,
    ) -> Result<(), Failure> {
        let progress = Progress::of(nodes as u64, "registering nodes to read");
        self.fill_with(service, nodes, metadata, &progress).await?;
        progress.finish();
        Ok(())
    }

    async fn fill_with(
        &self,
        service: &ServiceKey,
        nodes: usize,
        metadata: &str,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let entries: Vec<rollcall_client::Entry> = (0..nodes)
            .map(|index| rollcall_client::Entry::new(service.clone(), node(index, metadata)))
            .collect();
        for batch in entries.chunks(100) {
            self.registry.register_persistent(batch, plain()).await?;
            progress.add(batch.len() as u64);
        }
        Ok(())
    }

    /// Deletes everything, and says what could not be deleted: the figures stand all the same.
    pub(crate) async fn clear_up(self) {
        if let Err(failure) = self.delete().await {
            say(format_args!(
                "group {} could not be deleted: {failure}",
                self.group
            ));
        }
    }

    async fn delete(&self) -> Result<(), Failure> {
        let progress = Progress::of(self.services.len() as u64, "cleaning up");
        for service in &self.services {
            self.delete_service(service).await?;
            progress.add(1);
        }
        progress.finish();
        match self
            .registry
            .delete_group(&self.group, Expected::Any, plain())
            .await
        {
            Ok(_) | Err(Error::GroupNotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete_service(&self, service: &ServiceKey) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            self.empty(service).await?;
            tries += 1;
            match self
                .registry
                .delete_service(service, Expected::Any, plain())
                .await
            {
                Ok(_) | Err(Error::ServiceNotFound { .. } | Error::GroupNotFound { .. }) => return Ok(()),
                // A call that was under way when the bench ended registered one more.
                Err(Error::NotEmpty { .. }) if tries < CLEAR_TRIES => tokio::time::sleep(CLEAR_PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn empty(&self, service: &ServiceKey) -> Result<(), Failure> {
        let view = match self.registry.query_wire(service, ReadOptions::default()).await {
            Ok(answer) => answer.value,
            Err(Error::ServiceNotFound { .. } | Error::GroupNotFound { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for nodes in view.nodes.chunks(BATCH_MAX) {
            let removals: Vec<Removal> = nodes.iter().map(|node| service.node(&node.id).into()).collect();
            self.registry.deregister(&removals, plain()).await?;
        }
        Ok(())
    }
}

fn node(index: usize, metadata: &str) -> rollcall_client::Registration {
    let host = format!("10.{}.{}.{}", index >> 16 & 0xff, index >> 8 & 0xff, index & 0xff);
    let node = rollcall_client::Registration::new("http", host, 8080).kind(rollcall_client::NodeKind::Static);
    if metadata.is_empty() {
        node
    } else {
        node.metadata(FILLER_KEY, metadata)
    }
}

/// The name of the metadata that gives nodes their size.
pub(crate) const FILLER_KEY: &str = "filler";
/// Most metadata of a node (design section 11).
pub(crate) const METADATA_BYTES_MAX: usize = 4_096;

/// Metadata of so many bytes, its name included; empty if that leaves none.
pub(crate) fn filler(bytes: usize) -> String {
    "x".repeat(bytes.saturating_sub(FILLER_KEY.len()))
}

/// Bytes of metadata within the servers' bound.
pub(crate) fn metadata_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes <= METADATA_BYTES_MAX => Ok(bytes),
        Ok(bytes) => Err(format!(
            "{bytes} bytes are too many, at most {METADATA_BYTES_MAX} are allowed"
        )),
        Err(e) => Err(format!("{e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filler_counts_its_name() {
        assert_eq!(filler(128).len() + FILLER_KEY.len(), 128);
        assert_eq!(filler(0), "");
        assert!(metadata_bytes("4097").is_err());
    }

    #[test]
    fn nodes_have_addresses_of_their_own() {
        assert_eq!(node(0x0001_0203, "").id, "10.1.2.3:8080");
        assert_ne!(node(1, "").id, node(257, "").id);
    }
}
