//! Rounds: one question to the quorum, or to the leader, for everyone who waits.
//!
//! Whoever asks while a round runs waits for the next one, because a round that began earlier proves nothing
//! about what was acknowledged in between. A round begins after everybody who is about to ask had a turn: one more
//! asker costs nothing, one more round costs a quorum's messages.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Askers that may wait; beyond it they are told to come again.
const WAITING_MAX: usize = 65_536;

/// Why a round gave nothing.
#[derive(Debug, Clone)]
pub(crate) enum RoundError {
    /// The server does not lead.
    NotLeader,
    /// The quorum or the leader did not answer.
    Failed(String),
    /// Too many wait.
    Overloaded,
}

/// What a round gave.
pub(crate) type Round<T> = Result<T, RoundError>;

/// Shares rounds of one kind.
#[derive(Debug)]
pub(crate) struct Rounds<T> {
    waiting: mpsc::Sender<oneshot::Sender<Round<T>>>,
}

impl<T: Clone + Send + 'static> Rounds<T> {
    pub(crate) fn start<F, Fut>(stop: CancellationToken, round: F) -> Self
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Round<T>> + Send,
    {
        let (waiting, mut askers) = mpsc::channel::<oneshot::Sender<Round<T>>>(WAITING_MAX);
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Some(first) = askers.recv().await {
                // Everybody who is ready to ask does so first; then the round begins, and nobody joins it any more.
                tokio::task::yield_now().await;
                let mut all = vec![first];
                while let Ok(next) = askers.try_recv() {
                    all.push(next);
                }
                let result = round().await;
                for asker in all {
                    let _ = asker.send(result.clone());
                }
            }
        }));
        Self { waiting }
    }

    /// The result of a round that begins after this call.
    pub(crate) async fn ask(&self) -> Round<T> {
        let (answer, result) = oneshot::channel();
        match self.waiting.try_send(answer) {
            Ok(()) => result
                .await
                .unwrap_or_else(|_| Err(RoundError::Failed("this server is stopping".into()))),
            Err(mpsc::error::TrySendError::Full(_)) => Err(RoundError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(RoundError::Failed("this server is stopping".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// A kind of round that counts how often it began, and tells each asker which one it got.
    fn counted(begun: &Arc<AtomicU32>, go: &Arc<Semaphore>) -> Arc<Rounds<u32>> {
        let (begun, go) = (begun.clone(), go.clone());
        Arc::new(Rounds::start(CancellationToken::new(), move || {
            let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
            let go = go.clone();
            async move {
                go.acquire().await.unwrap().forget();
                Ok(number)
            }
        }))
    }

    #[tokio::test]
    async fn who_becomes_ready_in_the_turn_of_the_first_asker_joins_its_round() {
        let (begun, go) = (Arc::default(), Arc::new(Semaphore::new(8)));
        let rounds = counted(&begun, &go);
        // Asks, and only then makes the next one ready: behind the task that begins rounds, which was woken first.
        fn ask(rounds: Arc<Rounds<u32>>, more: u32) -> tokio::task::JoinHandle<Vec<u32>> {
            tokio::spawn(async move {
                let next = async { (more > 0).then(|| ask(rounds.clone(), more - 1)) };
                let (mine, next) = tokio::join!(rounds.ask(), next);
                let mut all = vec![mine.unwrap()];
                if let Some(next) = next {
                    all.extend(Box::pin(next).await.unwrap());
                }
                all
            })
        }
        assert_eq!(ask(rounds.clone(), 1).await.unwrap(), [1, 1]);
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        assert_eq!(rounds.ask().await.unwrap(), 2, "a later asker gets a later round");
    }

    #[tokio::test]
    async fn askers_share_rounds_and_never_get_one_that_began_before_them() {
        let (begun, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let rounds = counted(&begun, &go);
        let ask = || {
            let rounds = rounds.clone();
            tokio::spawn(async move { rounds.ask().await.unwrap() })
        };
        let first = ask();
        while begun.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
        let later: Vec<_> = (0..10).map(|_| ask()).collect();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        go.add_permits(2);
        assert_eq!(first.await.unwrap(), 1);
        for asker in later {
            assert_eq!(asker.await.unwrap(), 2);
        }
    }
}
