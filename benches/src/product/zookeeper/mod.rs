//! ZooKeeper as Debian packages it (3.8): a session a connection, providers as ephemeral children of
//! `/bench/<service>` with all they say in their name, as Dubbo does it, so that one call lists them.

mod connection;
mod jute;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::connection::Connection;
use super::{Client, Dialect, Product, Programs, Read, Ticket};
use crate::server::{Ports, ServerPlan};

/// Sessions used to prepare only.
const PREPARING_TTL: Duration = Duration::from_secs(30);

pub(crate) struct ZooKeeper;

#[tonic::async_trait]
impl Product for ZooKeeper {
    fn name(&self) -> &'static str {
        "ZooKeeper"
    }

    fn version(&self, programs: &Programs) -> Result<String> {
        let jars = programs.peers.join("debian/usr/share/java");
        let versions = std::fs::read_dir(&jars)
            .with_context(|| format!("{} cannot be read", jars.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut versions = versions.filter_map(|name| {
            let version = name.strip_prefix("zookeeper-")?.strip_suffix(".jar")?;
            version
                .starts_with(|c: char| c.is_ascii_digit())
                .then(|| version.to_owned())
        });
        versions.next().context("zookeeper.jar is not there")
    }

    fn settings(&self) -> &'static str {
        "maxClientCnxns=0 (60 connections an address otherwise), admin server off (its port is fixed)"
    }

    fn plan(
        &self,
        programs: &Programs,
        folder: &Path,
        servers: usize,
        _ttl: Duration,
    ) -> Result<Vec<ServerPlan>> {
        let mut ports = Ports::new();
        let mut addresses = Vec::new();
        for _ in 0..servers {
            addresses.push((ports.free()?, ports.free()?, ports.free()?));
        }
        let mut members = String::new();
        if servers > 1 {
            for (index, (_, peer, election)) in addresses.iter().enumerate() {
                members += &format!("server.{}=127.0.0.1:{peer}:{election}\n", index + 1);
            }
        }
        let mut plans = Vec::new();
        for (index, (client, _, _)) in addresses.iter().enumerate() {
            let folder = folder.join(format!("zookeeper-{index}"));
            let data = folder.join("data");
            std::fs::create_dir_all(&data)?;
            std::fs::write(data.join("myid"), format!("{}\n", index + 1))?;
            let config = folder.join("zoo.cfg");
            let text = format!(
                "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={client}\nclientPortAddress=127.0.0.1\n\
                 maxClientCnxns=0\nadmin.enableServer=false\n{members}",
                data.display()
            );
            std::fs::write(&config, text)?;
            let logging = "log4j.rootLogger=INFO, CONSOLE\nlog4j.appender.CONSOLE=org.apache.log4j.ConsoleAppender\n\
                           log4j.appender.CONSOLE.layout=org.apache.log4j.PatternLayout\n\
                           log4j.appender.CONSOLE.layout.ConversionPattern=%d{ISO8601} - %-5p [%t:%C{1}@%L] - %m%n\n";
            std::fs::write(folder.join("log4j.properties"), logging)?;
            let mut plan = ServerPlan::new(PathBuf::from("java"), &folder);
            plan.address = format!("127.0.0.1:{client}");
            plan.arguments = vec![
                "-cp".into(),
                class_path(programs, &folder),
                "org.apache.zookeeper.server.quorum.QuorumPeerMain".into(),
                config.display().to_string(),
            ];
            plans.push(plan);
        }
        Ok(plans)
    }

    fn dialects(&self) -> Vec<Arc<dyn Dialect>> {
        vec![Arc::new(Jute)]
    }

    async fn leader(&self, addresses: &[String]) -> Result<usize> {
        for (index, address) in addresses.iter().enumerate() {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"srvr").await?;
            let mut said = String::new();
            stream.read_to_string(&mut said).await?;
            if said.contains("Mode: leader") || said.contains("Mode: standalone") {
                return Ok(index);
            }
        }
        bail!("no ZooKeeper server leads")
    }
}

/// What Debian's zookeeper.jar names in its manifest, from the unpacked packages or the system.
fn class_path(programs: &Programs, folder: &Path) -> String {
    const JARS: &str = "zookeeper zookeeper-jute commons-cli commons-io findbugs-annotations jackson-annotations jackson-core \
        jackson-databind jline metrics-core netty-buffer netty-codec netty-common netty-handler netty-resolver netty-transport \
        netty-transport-native-epoll netty-transport-native-unix-common slf4j-api slf4j-log4j12 log4j-1.2 snappy-java";
    let roots = [
        programs.peers.join("debian/usr/share/java"),
        PathBuf::from("/usr/share/java"),
    ];
    let mut path = vec![folder.display().to_string()];
    for jar in JARS.split_whitespace() {
        let found = roots
            .iter()
            .map(|root| root.join(format!("{jar}.jar")))
            .find(|jar| jar.exists());
        path.extend(found.map(|jar| jar.display().to_string()));
    }
    path.join(":")
}

struct Jute;

#[tonic::async_trait]
impl Dialect for Jute {
    fn name(&self) -> &'static str {
        ""
    }

    fn can(&self, read: Read) -> bool {
        matches!(read, Read::Local | Read::Linearizable)
    }

    async fn prepare(&self, addresses: &[String], services: &[Arc<str>]) -> Result<()> {
        let address = addresses.first().context("there is no server")?;
        let connection = Connection::connect(address, PREPARING_TTL, None).await?;
        let paths = std::iter::once("/bench".to_owned())
            .chain(services.iter().map(|service| format!("/bench/{service}")));
        for path in paths {
            let code = connection.create(&path, false).await?;
            ensure!(
                code == 0 || code == jute::NODE_EXISTS,
                "{path} cannot be created: {code}"
            );
        }
        connection.close(&Ticket::default()).await
    }

    async fn connect(
        &self,
        address: &str,
        ttl: Duration,
        ticket: Option<&Ticket>,
    ) -> Result<Arc<dyn Client>> {
        Ok(Arc::new(Connection::connect(address, ttl, ticket).await?))
    }
}
