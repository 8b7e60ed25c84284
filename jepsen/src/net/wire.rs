//! The thread that carries frames between the interfaces and the switch.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tun_rs::SyncDevice;

use super::switch::Switch;

/// The largest frame of an interface with the usual MTU, and some.
const FRAME_MAX: usize = 2_048;
/// Frames taken from one interface before the others have their turn.
const BURST_MAX: usize = 64;

/// A running switch. Dropping it ends the thread and closes the interfaces.
#[derive(Debug)]
pub(super) struct Wire {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    switch: Mutex<Switch>,
    stopping: AtomicBool,
    wake: OwnedFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Switch> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    /// Joins `devices` by `switch`, which has a port for each.
    pub(super) fn start(devices: Vec<SyncDevice>, switch: Switch) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            switch: Mutex::new(switch),
            stopping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC)?,
        });
        let thread = std::thread::Builder::new().name("rc-switch".into()).spawn({
            let shared = Arc::clone(&shared);
            move || carry(&devices, &shared)
        });
        Ok(Self {
            shared,
            thread: Some(thread.context("starting the switch's thread")?),
        })
    }

    pub(super) fn switch(&self) -> MutexGuard<'_, Switch> {
        self.shared.lock()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(devices: &[SyncDevice], shared: &Shared) {
    let started = Instant::now();
    let mut buffer = vec![0; FRAME_MAX];
    while !shared.stopping.load(Ordering::Acquire) {
        let next = shared.lock().next_due();
        let ready = wait(
            devices,
            shared,
            next.map(|due| due.saturating_sub(started.elapsed())),
        );
        for port in ready {
            for _ in 0..BURST_MAX {
                match devices[port].recv(&mut buffer) {
                    Ok(bytes) => shared
                        .lock()
                        .accept(port, buffer[..bytes].to_vec(), started.elapsed()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // Nothing more, or the interface is not up.
                    Err(_) => break,
                }
            }
        }
        deliver(devices, shared, started);
    }
}

/// Waits until an interface has a frame, a frame is due, or the wire ends; gives back the ports with frames.
fn wait(devices: &[SyncDevice], shared: &Shared, until: Option<Duration>) -> Vec<usize> {
    let mut sources: Vec<_> = devices
        .iter()
        .map(|device| PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN))
        .collect();
    sources.push(PollFd::new(&shared.wake, PollFlags::IN));
    let until = until.and_then(|until| Timespec::try_from(until).ok());
    if poll(&mut sources, until.as_ref()).is_err() {
        return Vec::new();
    }
    let has_frame = |(_, source): &(usize, &PollFd<'_>)| source.revents().contains(PollFlags::IN);
    let ports = sources.iter().enumerate().take(devices.len());
    ports.filter(has_frame).map(|(port, _)| port).collect()
}

fn deliver(devices: &[SyncDevice], shared: &Shared, started: Instant) {
    loop {
        let taken = shared.lock().take_due(started.elapsed());
        let Some((from, to, frame)) = taken else { return };
        if devices[to].send(&frame).is_err() {
            shared.lock().note_refused(from, to, frame.len());
        }
    }
}
