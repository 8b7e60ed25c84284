//! The bare machine: what no server can go below. An echo over loopback with epoll and no framing, an append that is
//! synced, a copy of memory. How far a path is from it says how much there is left to gain.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

use crate::drive::{Until, drive};
use crate::machine::{self, Cpu, Others};
use crate::results::{Row, Run};
use crate::workload::Ground;

/// The name in the rows.
pub(crate) const BARE: &str = "bare machine";
/// Workloads, and what each is.
pub(crate) const FLOORS: [(&str, &str, &str); 5] = [
    (
        "bare-echo",
        "server_cpu_us",
        "64 bytes there and back, 64 connections: us of CPU",
    ),
    (
        "bare-answer",
        "server_cpu_us",
        "64 bytes there, 24,000 back (100 nodes): us of CPU",
    ),
    (
        "bare-fanout",
        "server_cpu_us",
        "300 bytes to each of 1,000 connections: us of CPU a connection",
    ),
    ("bare-sync", "sync_ms", "append of 512 bytes and fdatasync: ms"),
    (
        "bare-copy",
        "gib_per_s",
        "copy of memory that is in no cache: GiB/s",
    ),
];

/// Every question has this size; it begins with the size of the answer and with whether all are to get it.
const QUESTION: usize = 64;
const LISTENER: Token = Token(usize::MAX);

fn question(answer: u32, all: bool) -> [u8; QUESTION] {
    let mut question = [0; QUESTION];
    question[..4].copy_from_slice(&answer.to_le_bytes());
    question[4] = u8::from(all);
    question
}

/// The server: prints its address and answers until its standard input ends.
pub(crate) fn serve() -> Result<()> {
    std::thread::spawn(|| {
        let _ended = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("{}", listener.local_addr()?);
    let mut connections: Vec<TcpStream> = Vec::new();
    let mut events = Events::with_capacity(1_024);
    let answer = vec![7; 1 << 16];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    poll.registry()
                        .register(&mut stream, Token(connections.len()), Interest::READABLE)?;
                    connections.push(stream);
                }
                continue;
            }
            let mut asked = [0; QUESTION];
            let index = event.token().0;
            while let Ok(QUESTION) = (&connections[index]).read(&mut asked) {
                let [a, b, c, d, all, ..] = asked;
                let bytes = answer
                    .get(..u32::from_le_bytes([a, b, c, d]) as usize)
                    .context("the answer is too large")?;
                if all == 0 {
                    write_whole(&connections[index], bytes)?;
                } else {
                    connections
                        .iter()
                        .try_for_each(|connection| write_whole(connection, bytes))?;
                }
            }
        }
    }
}

/// Answers fit into the socket's buffer unless a client is slow to read; then this spins, which counts against the floor.
fn write_whole(mut to: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The server as a process, ended when this is dropped.
struct Echo {
    child: Child,
    address: String,
}

impl Echo {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("bare")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        let said = child.stdout.take().context("it has no output")?;
        BufReader::new(said).read_line(&mut address)?;
        Ok(Self {
            child,
            address: address.trim().to_owned(),
        })
    }

    async fn connect(&self, count: usize) -> Result<Arc<Vec<Mutex<tokio::net::TcpStream>>>> {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            let stream = tokio::net::TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            streams.push(Mutex::new(stream));
        }
        Ok(Arc::new(streams))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Measures all floors that are wanted; what fails is noted in its row.
pub(crate) async fn measure(ground: &Ground, data: &Path) {
    for (workload, ..) in FLOORS {
        if !ground.wants(workload) {
            continue;
        }
        let mut row = Row {
            workload: workload.to_owned(),
            servers: 1,
            product: BARE.to_owned(),
            dialect: String::new(),
            runs: Vec::new(),
            note: None,
            load: machine::load(),
        };
        for _ in 0..ground.sizes.runs {
            let run = match workload {
                "bare-echo" => echo(ground, 64).await,
                "bare-answer" => echo(ground, 24_000).await,
                "bare-fanout" => fanout(ground).await,
                "bare-sync" => sync(data),
                _ => Ok(copy()),
            };
            match run {
                Ok(run) => row.runs.push(run),
                Err(error) => row.note = Some(format!("{error:#}")),
            }
        }
        ground.file(row).await;
    }
}

async fn echo(ground: &Ground, answer: u32) -> Result<Run> {
    let server = Echo::start()?;
    let lanes = ground.sizes.connections;
    let streams = server.connect(lanes).await?;
    let (before, own) = (Cpu::of(server.child.id()), Cpu::of(std::process::id()));
    let others = Others::begin();
    let load = drive(
        lanes,
        1,
        Until::Time(ground.sizes.window()),
        move |lane, _call| {
            let streams = Arc::clone(&streams);
            async move {
                let mut stream = streams[lane].lock().await;
                stream.write_all(&question(answer, false)).await?;
                let mut answered = vec![0; answer as usize];
                stream.read_exact(&mut answered).await?;
                Ok(())
            }
        },
    )
    .await?;
    let spent = Cpu::of(server.child.id()).since(&before);
    let own = Cpu::of(std::process::id()).since(&own);
    let mut run = Run::default();
    run.set("server_cpu_us", spent as f64 / 1e3 / load.calls as f64);
    run.set("load_cpu_us", own as f64 / 1e3 / load.calls as f64);
    run.set("others_share", others.share(spent + own));
    load.tell(&mut run, 1);
    Ok(run)
}

async fn fanout(ground: &Ground) -> Result<Run> {
    const BYTES: u32 = 300;
    let server = Echo::start()?;
    let watchers = ground.sizes.watchers;
    let streams = server.connect(watchers).await?;
    let before = Cpu::of(server.child.id());
    let started = Instant::now();
    let changes = ground.sizes.changes.max(1);
    for _ in 0..changes {
        streams[0].lock().await.write_all(&question(BYTES, true)).await?;
        let reads = streams.iter().map(async |stream| {
            let mut answered = [0; BYTES as usize];
            stream.lock().await.read_exact(&mut answered).await
        });
        futures_util::future::try_join_all(reads).await?;
    }
    let spent = Cpu::of(server.child.id()).since(&before);
    let mut run = Run::default();
    run.set(
        "server_cpu_us",
        spent as f64 / 1e3 / (watchers as u64 * changes) as f64,
    );
    run.set("last_ms", started.elapsed().as_secs_f64() * 1e3 / changes as f64);
    Ok(run)
}

/// On the disk that servers have their folders on.
fn sync(data: &Path) -> Result<Run> {
    const TIMES: u32 = 200;
    let path = data.join("bare-sync");
    let mut file = File::create(&path)?;
    let before = Cpu::of(std::process::id());
    let started = Instant::now();
    for _ in 0..TIMES {
        file.write_all(&[7; 512])?;
        file.sync_data()?;
    }
    let took = started.elapsed();
    let spent = Cpu::of(std::process::id()).since(&before);
    std::fs::remove_file(&path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let mut run = Run::default();
    run.set("sync_ms", took.as_secs_f64() * 1e3 / f64::from(TIMES));
    run.set("own_cpu_us", spent as f64 / 1e3 / f64::from(TIMES));
    Ok(run)
}

fn copy() -> Run {
    const BYTES: usize = 256 << 20;
    let from = vec![1_u8; BYTES];
    let mut to = vec![0_u8; BYTES];
    let started = Instant::now();
    let mut copied = 0;
    while started.elapsed() < Duration::from_millis(300) {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        copied += BYTES;
    }
    let mut run = Run::default();
    let gib = copied as f64 / f64::from(1 << 30);
    run.set("gib_per_s", gib / started.elapsed().as_secs_f64());
    run
}
