//! One connection, carried by the proxy.
//!
//! What one side says waits in a queue until it is due and the link lets it pass, its end included: a cut tells
//! nobody. When the queue is full the sender's bytes stay where they are, and it is slowed down as by a full window.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::loopback::{Shared, Way};

/// Most bytes of one piece.
const PIECE_MAX: usize = 16 << 10;
/// Most pieces that wait on one side of a connection.
const PIECES_MAX: usize = 64;

/// From whom to whom a connection goes, and what its ends are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) there: Way,
    pub(super) back: Way,
    /// Where the receiver really listens.
    pub(super) address: SocketAddr,
}

struct Piece {
    due: Duration,
    said: Said,
}

enum Said {
    Bytes(Vec<u8>),
    End,
    Broken,
}

/// One side broke the connection off, and the other has to learn it.
struct Broken;

/// Carries a connection until both sides have ended it, or one breaks it off.
pub(super) async fn carry(shared: &Shared, near: TcpStream, route: Route) {
    // It takes a word each way before anything is said.
    for way in [route.there, route.back] {
        shared.passes(way, 0).await;
    }
    let far = match TcpStream::connect(route.address).await {
        Ok(far) => far,
        Err(_) => return break_off(&near),
    };
    // Both are loopback sockets of this process: the kernel refuses neither.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (mut near_says, mut near_hears) = near.into_split();
    let (mut far_says, mut far_hears) = far.into_split();
    let carried = async {
        tokio::try_join!(
            pump(shared, route.there, &mut near_says, &mut far_hears),
            pump(shared, route.back, &mut far_says, &mut near_hears),
        )
    };
    let reset = shared.note_connection(route.there.link);
    let ended = tokio::select! {
        ended = carried => ended.is_ok(),
        () = reset.notified() => false,
    };
    drop(reset);
    if !ended {
        break_off(near_says.as_ref());
        break_off(far_says.as_ref());
        // Their usual end says that all was said.
        near_hears.forget();
        far_hears.forget();
    }
}

/// Its other side is told that it broke, not that it ended, once it is dropped.
fn break_off(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        eprintln!("a connection ends where it should break: {error}");
    }
}

async fn pump(
    shared: &Shared,
    way: Way,
    says: &mut OwnedReadHalf,
    hears: &mut OwnedWriteHalf,
) -> Result<(), Broken> {
    let (queue, waiting) = mpsc::channel(PIECES_MAX);
    let mut giving = std::pin::pin!(give(shared, way, waiting, hears));
    tokio::select! {
        given = &mut giving => given,
        () = take(shared, way, says, queue) => giving.await,
    }
}

async fn take(shared: &Shared, way: Way, says: &mut OwnedReadHalf, queue: mpsc::Sender<Piece>) {
    loop {
        let mut bytes = vec![0; PIECE_MAX];
        let (count, said) = match says.read(&mut bytes).await {
            Ok(0) => (0, Said::End),
            Ok(count) => {
                bytes.truncate(count);
                (count, Said::Bytes(bytes))
            }
            Err(_) => (0, Said::Broken),
        };
        let is_last = !matches!(said, Said::Bytes(_));
        let due = shared.piece(way, count);
        if queue.send(Piece { due, said }).await.is_err() || is_last {
            return;
        }
    }
}

async fn give(
    shared: &Shared,
    way: Way,
    mut waiting: mpsc::Receiver<Piece>,
    hears: &mut OwnedWriteHalf,
) -> Result<(), Broken> {
    while let Some(Piece { due, said }) = waiting.recv().await {
        tokio::time::sleep_until(shared.moment(due)).await;
        match said {
            Said::Bytes(bytes) => {
                shared.passes(way, bytes.len()).await;
                // Whoever hears nothing any more says so the other way, where it may be held back.
                if hears.write_all(&bytes).await.is_err() {
                    return Ok(());
                }
                shared.note_delivered(way, bytes.len());
            }
            Said::End => {
                shared.passes(way, 0).await;
                // If it is gone already there is nothing to end.
                let _ = hears.shutdown().await;
                return Ok(());
            }
            Said::Broken => {
                shared.passes(way, 0).await;
                return Err(Broken);
            }
        }
    }
    Ok(())
}
