//! A host: an address, a clock of its own and the runtime of the one program that runs on it.
//!
//! The runtime never sleeps. It runs until nothing is ready any more; then it has said when its next timer is due, and
//! the world goes on. To stop stepping it is to pause the host; to drop it is to kill the program.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Builder, Runtime};

use crate::boundary::{self, Entered};
use crate::network::{HostIndex, ip_of};
use crate::time::{MILLISECOND, Moment};

/// Looks for events at one instant beyond which a program is held to run in circles.
const LOOKS_MAX: u64 = 1_000_000;

/// A host.
#[derive(Debug)]
pub(crate) struct Host {
    index: HostIndex,
    runtime: Option<Runtime>,
    /// When it wants to run again, if nothing comes earlier.
    wakes_at: Option<Moment>,
    /// It stands still.
    pub(crate) paused: bool,
    /// How far its wall clock is ahead, in nanoseconds.
    pub(crate) wall_offset: i64,
}

thread_local! {
    static IDLE: Cell<bool> = const { Cell::new(false) };
    static WAITING: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// Ready when the runtime has nothing to do.
struct UntilIdle;

impl Future for UntilIdle {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if IDLE.get() {
            return Poll::Ready(());
        }
        WAITING.with(|waiting| *waiting.borrow_mut() = Some(context.waker().clone()));
        Poll::Pending
    }
}

fn after_look() {
    if boundary::is_idle() {
        IDLE.set(true);
        if let Some(waker) = WAITING.with(|waiting| waiting.borrow_mut().take()) {
            waker.wake();
        }
    }
}

impl Host {
    pub(crate) fn new(index: HostIndex) -> Self {
        Self {
            index,
            runtime: None,
            wakes_at: None,
            paused: false,
            wall_offset: 0,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.runtime.is_some()
    }

    pub(crate) fn wakes_at(&self) -> Option<Moment> {
        self.wakes_at.filter(|_| !self.paused && self.runtime.is_some())
    }

    fn enter(&self, world: &Entered) {
        world.set_host(ip_of(self.index), self.wall_offset);
    }

    /// Starts a program; it runs with the next step.
    pub(crate) fn start(
        &mut self,
        program: impl Future<Output = ()> + Send + 'static,
        now: Moment,
        world: &Entered,
    ) -> io::Result<()> {
        self.enter(world);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_unpark(after_look)
            .build()?;
        runtime.spawn(program);
        self.runtime = Some(runtime);
        self.wakes_at = Some(now);
        Ok(())
    }

    /// Does work in the program's place, where it could spawn.
    pub(crate) fn within<T>(&self, world: &Entered, work: impl FnOnce() -> T) -> Option<T> {
        self.enter(world);
        let _context = self.runtime.as_ref()?.enter();
        Some(work())
    }

    /// Lets the program run until it waits.
    pub(crate) fn step(&mut self, now: Moment, world: &Entered) {
        self.enter(world);
        let Some(runtime) = &self.runtime else { return };
        IDLE.set(false);
        runtime.block_on(UntilIdle);
        assert!(
            world.looks() < LOOKS_MAX,
            "the program of host {} runs in circles",
            self.index
        );
        self.wakes_at = world.sleeps_for().map(|sleep| now + sleep * MILLISECOND);
    }

    /// Ends the program at once.
    pub(crate) fn kill(&mut self, world: &Entered) {
        self.enter(world);
        self.wakes_at = None;
        drop(self.runtime.take());
    }
}
