//! The course: which workloads, on which clusters, in which order. One product after the other wherever processors are
//! the measure; side by side where all of them mostly wait.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::product::{Product, Programs, Read};
use crate::results::Row;
use crate::workload::{
    Ground, Heartbeats, Paused, Shape, dialects, discover, expiry, failover, join, pause, register, renew,
    restart, watch_own, watch_shared,
};

/// Sessions that must outlive a restart of their server.
const LONG_TTL: Duration = Duration::from_secs(40);

/// Of registering.
const SHAPES: [&str; 3] = ["register", "register-deep", "register-batch"];
/// Of heartbeats as fast as they are answered.
const HEARTBEATS: [&str; 3] = ["renew", "renew-deep", "renew-batch"];
const WATCHES: [&str; 8] = [
    "watch-memory",
    "watch-one",
    "watch-burst",
    "watch-shared-memory",
    "watch-shared-one",
    "watch-many-memory",
    "watch-many-one",
    "watch-many-burst",
];

/// Runs it all; what fails is noted in the results.
pub(crate) async fn run(ground: &Ground, products: &[Arc<dyn Product>], programs: &Programs, data: &Path) {
    for product in products {
        let stage = Stage {
            ground,
            product,
            programs,
            data,
        };
        stage.one_server().await;
        stage.three_servers().await;
    }
    let waits = products.iter().map(|product| {
        let stage = Stage {
            ground,
            product,
            programs,
            data,
        };
        async move { stage.calm().await }
    });
    futures_util::future::join_all(waits).await;
}

struct Stage<'a> {
    ground: &'a Ground,
    product: &'a Arc<dyn Product>,
    programs: &'a Programs,
    data: &'a Path,
}

impl Stage<'_> {
    /// A fresh cluster for some work; whatever fails in it is noted under the workload's name.
    async fn with(
        &self,
        workloads: &[&str],
        servers: usize,
        ttl: Duration,
        work: impl AsyncFnOnce(&mut Cluster) -> Result<()>,
    ) {
        if !self.ground.wants_any(workloads) {
            return;
        }
        let name = workloads.first().copied().unwrap_or_default();
        let folder = self
            .data
            .join(format!("{}-{servers}-{name}", self.product.name()));
        let done = match Cluster::start(self.product, self.programs, &folder, servers, ttl).await {
            Ok(mut cluster) => {
                let done = work(&mut cluster).await;
                if done.is_ok() {
                    cluster.discard();
                }
                done
            }
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            let row = Row {
                workload: name.to_owned(),
                servers,
                product: self.product.name().to_owned(),
                dialect: "failed".to_owned(),
                runs: Vec::new(),
                note: Some(format!("{error:#}")),
                load: crate::machine::load(),
            };
            self.ground.file(row).await;
        }
    }

    async fn one_server(&self) {
        let sizes = &self.ground.sizes;
        let calls = [&SHAPES[..], &["discover"], &HEARTBEATS].concat();
        let work = async |cluster: &mut Cluster| {
            self.registers(cluster).await?;
            for read in [Read::Local, Read::Linearizable, Read::Unchanged] {
                discover(self.ground, cluster, &cluster.dialect()?, read).await?;
            }
            let shape = |name, depth, sessions| Heartbeats {
                name,
                depth,
                sessions,
            };
            let shapes = [
                shape(HEARTBEATS[0], 1, 1),
                shape(HEARTBEATS[1], sizes.depth, 1),
                shape(HEARTBEATS[2], 1, sizes.depth),
            ];
            for dialect in renewing(cluster) {
                for shape in shapes {
                    renew(self.ground, cluster, &dialect, shape).await?;
                }
            }
            Ok(())
        };
        self.with(&calls, 1, sizes.ttl(), work).await;
        let work = async |cluster: &mut Cluster| {
            let dialect = cluster.dialect()?;
            watch_own(
                self.ground,
                cluster,
                &dialect,
                "watch",
                sizes.watchers,
                sizes.burst,
            )
            .await?;
            watch_shared(self.ground, cluster, &dialect).await
        };
        self.with(&WATCHES[..5], 1, sizes.ttl(), work).await;
        let work = async |cluster: &mut Cluster| {
            let dialect = cluster.dialect()?;
            watch_own(
                self.ground,
                cluster,
                &dialect,
                "watch-many",
                sizes.watchers_many,
                0,
            )
            .await
        };
        self.with(&WATCHES[5..], 1, sizes.ttl(), work).await;
        // Each in a cluster of its own: what the first one grew would be used again by the other.
        for dialect in self
            .product
            .dialects()
            .into_iter()
            .filter(|dialect| dialect.renews())
        {
            let work = async |cluster: &mut Cluster| join(self.ground, cluster, &dialect).await;
            self.with(&["join", "renew-paced", "session-memory"], 1, sizes.ttl(), work)
                .await;
        }
        let work = async |cluster: &mut Cluster| {
            let dialect = cluster.dialect()?;
            restart(self.ground, cluster, &dialect).await
        };
        self.with(&["stored-memory", "restart"], 1, LONG_TTL, work).await;
    }

    async fn three_servers(&self) {
        let sizes = &self.ground.sizes;
        let calls = [&SHAPES[..], &["discover-linearizable"]].concat();
        let work = async |cluster: &mut Cluster| {
            self.registers(cluster).await?;
            discover(self.ground, cluster, &cluster.dialect()?, Read::Linearizable).await
        };
        self.with(&calls, 3, sizes.ttl(), work).await;
        let work = async |cluster: &mut Cluster| {
            let dialect = cluster.dialect()?;
            failover(self.ground, cluster, &dialect).await
        };
        self.with(&["failover"], 3, sizes.ttl(), work).await;
    }

    /// All shapes of registering, in all dialects.
    async fn registers(&self, cluster: &mut Cluster) -> Result<()> {
        let sizes = &self.ground.sizes;
        let shape = |name, depth, batch| Shape { name, depth, batch };
        let shapes = [
            shape(SHAPES[0], 1, 1),
            shape(SHAPES[1], sizes.depth, 1),
            shape(SHAPES[2], 1, sizes.batch),
        ];
        for dialect in dialects(cluster)
            .into_iter()
            .filter(|dialect| dialect.registers())
        {
            for shape in shapes {
                let work = async |cluster: &mut Cluster, run: usize| {
                    if run == 0 {
                        // What a fresh server has to get over first: class loading, compilation, first pages.
                        register(self.ground, cluster, &dialect, shape, sizes.nodes / 4).await?;
                    }
                    register(self.ground, cluster, &dialect, shape, sizes.nodes).await
                };
                self.ground
                    .measure(shape.name, sizes.runs, cluster, dialect.name(), work)
                    .await;
            }
        }
        Ok(())
    }

    /// Faults under next to no load, each on a cluster of its own.
    async fn calm(&self) {
        let ttl = self.ground.sizes.short_ttl();
        let expiries = async |cluster: &mut Cluster| {
            let dialect = cluster.dialect()?;
            expiry(self.ground, cluster, &dialect).await
        };
        let pauses = |paused| {
            async move |cluster: &mut Cluster| {
                let dialect = cluster.dialect()?;
                pause(self.ground, cluster, &dialect, paused).await
            }
        };
        tokio::join!(
            self.with(&["expiry"], 3, ttl, expiries),
            self.with(&["pause-leader"], 3, ttl, pauses(Paused::Leader)),
            self.with(&["pause-all"], 3, ttl, pauses(Paused::All)),
        );
    }
}

/// Those in which renewing is measured.
fn renewing(cluster: &Cluster) -> Vec<Arc<dyn crate::product::Dialect>> {
    dialects(cluster)
        .into_iter()
        .filter(|dialect| dialect.renews())
        .collect()
}
