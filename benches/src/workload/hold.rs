//! A client in a process of its own, to be killed: it registers nodes and keeps them until then. Each line that it is
//! sent makes it renew at once, and is answered when the server has.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::sync::mpsc;

use crate::product::{self, Node};

/// What such a process is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct Hold {
    #[arg(long)]
    pub(crate) product: String,
    #[arg(long)]
    pub(crate) address: String,
    #[arg(long)]
    pub(crate) ttl_s: u64,
    /// One or more, separated by commas
    #[arg(long, value_delimiter = ',')]
    pub(crate) services: Vec<String>,
    /// Nodes in each
    #[arg(long)]
    pub(crate) nodes: u32,
    /// Number of the first
    #[arg(long)]
    pub(crate) first: u32,
    #[arg(long)]
    pub(crate) bytes: usize,
}

impl Hold {
    fn arguments(&self) -> Vec<String> {
        let pairs = [
            ("--product", self.product.clone()),
            ("--address", self.address.clone()),
            ("--ttl-s", self.ttl_s.to_string()),
            ("--services", self.services.join(",")),
            ("--nodes", self.nodes.to_string()),
            ("--first", self.first.to_string()),
            ("--bytes", self.bytes.to_string()),
        ];
        pairs
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }
}

/// What the process does.
pub(crate) async fn hold(hold: Hold) -> Result<()> {
    let products = product::all();
    let product = products.iter().find(|product| product.name() == hold.product);
    let dialect = product.and_then(|product| product.dialects().into_iter().next());
    let dialect = dialect.with_context(|| format!("no product {}", hold.product))?;
    let ttl = Duration::from_secs(hold.ttl_s);
    let client = dialect.connect(&hold.address, ttl, None).await?;
    let ticket = client.open(ttl).await?;
    for service in &hold.services {
        let service: Arc<str> = service.as_str().into();
        let nodes: Vec<_> = (hold.first..hold.first + hold.nodes)
            .map(|number| Node::new(&service, number, hold.bytes))
            .collect();
        for nodes in nodes.chunks(100) {
            client.register(&ticket, nodes).await?;
        }
    }
    println!("ready");
    let (lines, mut asked) = mpsc::channel(1);
    std::thread::spawn(move || {
        for _line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(()).is_err() {
                return;
            }
        }
    });
    loop {
        let told = tokio::time::timeout(ttl / 3, asked.recv()).await;
        client.renew(&ticket).await?;
        match told {
            Ok(Some(())) => {
                println!("renewed");
                std::io::stdout().flush()?;
            }
            Ok(None) => return Ok(()),
            Err(_) => {}
        }
    }
}

/// Such a process, from outside.
pub(crate) struct Holder {
    child: Child,
    lines: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Holder {
    /// Starts it and waits until its nodes are registered.
    pub(crate) async fn start(hold: &Hold) -> Result<Self> {
        let program: PathBuf = std::env::current_exe()?;
        let mut child = Command::new(program)
            .arg("hold")
            .args(hold.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = child.stdin.take().context("no way in")?;
        let answers = BufReader::new(child.stdout.take().context("no way out")?);
        let holder = Self {
            child,
            lines,
            answers,
        };
        holder.hear("ready").await
    }

    /// Has it renew now.
    pub(crate) async fn renew(mut self) -> Result<Self> {
        self.lines.write_all(b"\n")?;
        self.lines.flush()?;
        self.hear("renewed").await
    }

    async fn hear(mut self, wanted: &'static str) -> Result<Self> {
        tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            self.answers.read_line(&mut line)?;
            ensure!(
                line.trim() == wanted,
                "the holder said {line:?} instead of {wanted:?}"
            );
            Ok(self)
        })
        .await?
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
