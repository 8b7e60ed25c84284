//! The boundary to the C library, of which `c/world.c` replaces a part on threads that entered a world: clocks,
//! randomness, sockets, epoll, syncs of files.
//!
//! The functions take and give numbers only, and check them, so they are safe to call from anywhere in a world; one
//! such world belongs to one thread, and so does the [`Entered`] that stands for it.

use std::marker::PhantomData;

/// What a program did to a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Act {
    pub(crate) kind: u32,
    pub(crate) ip: u32,
    pub(crate) port: u32,
    pub(crate) host: u32,
    pub(crate) socket: u64,
    pub(crate) chunk: u64,
}

pub(crate) const ACT_CONNECT: u32 = 1;
pub(crate) const ACT_DATA: u32 = 2;
pub(crate) const ACT_FINISH: u32 = 3;
pub(crate) const ACT_CLOSE: u32 = 4;
pub(crate) const ACT_DATAGRAM: u32 = 5;

/// A connection was refused: nobody listens.
pub(crate) const REFUSED: i32 = 111;
/// A connection was reset: the other end is no more.
pub(crate) const RESET: i32 = 104;
/// A connection could not be made in time.
pub(crate) const TIMED_OUT: i32 = 110;
/// There is no such host.
pub(crate) const UNREACHABLE: i32 = 113;

#[expect(
    unsafe_code,
    reason = "declares functions of c/world.c; each is safe to call in a world"
)]
mod c {
    use super::Act;

    unsafe extern "C" {
        pub(super) safe fn sim_enter(seed: u64, on_sync: extern "C" fn(i32));
        pub(super) safe fn sim_leave();
        pub(super) safe fn sim_now(now: u64);
        pub(super) safe fn sim_host(ip: u32, wall_offset: i64);
        pub(super) safe fn sim_idle() -> u32;
        pub(super) safe fn sim_timeout() -> i64;
        pub(super) safe fn sim_spins() -> u64;
        pub(super) safe fn sim_drawn() -> u64;
        pub(super) safe fn sim_next(out: &mut Act) -> u32;
        pub(super) safe fn sim_take(socket: u64) -> u64;
        pub(super) safe fn sim_listener(ip: u32, port: u32) -> u64;
        pub(super) safe fn sim_accept(listener: u64, from: u64) -> u64;
        pub(super) safe fn sim_connected(socket: u64, peer: u64);
        pub(super) safe fn sim_deliver(socket: u64, chunk: u64) -> u32;
        pub(super) safe fn sim_deliver_datagram(ip: u32, port: u32, chunk: u64) -> u32;
        pub(super) safe fn sim_finish(socket: u64);
        pub(super) safe fn sim_break(socket: u64, error: i32);
        pub(super) safe fn sim_is_closed(socket: u64) -> u32;
        pub(super) safe fn sim_forget(socket: u64);
        pub(super) safe fn sim_chunk_free(chunk: u64);
        pub(super) safe fn sim_chunk_copy(chunk: u64) -> u64;
        pub(super) safe fn sim_chunk_hash(chunk: u64) -> u64;
    }
}

/// The thread is in a world until this is dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    /// It stays on its thread.
    _thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        c::sim_leave();
    }
}

/// Enters a world whose randomness follows from the seed. `on_sync` is called when a file is synced.
///
/// The standard library remembers random keys by thread: only on a fresh thread does everything follow from the seed.
pub(crate) fn enter(seed: u64, on_sync: extern "C" fn(i32)) -> Entered {
    c::sim_enter(seed, on_sync);
    Entered { _thread: PhantomData }
}

impl Entered {
    /// Sets the time, in nanoseconds since the world began.
    pub(crate) fn set_now(&self, now: u64) {
        c::sim_now(now);
    }

    /// From now on this host acts; its wall clock is off by so many nanoseconds.
    pub(crate) fn set_host(&self, ip: u32, wall_offset: i64) {
        c::sim_host(ip, wall_offset);
    }

    /// For how long the runtime that ran last would sleep now, in milliseconds; `None`: until something comes.
    pub(crate) fn sleeps_for(&self) -> Option<u64> {
        u64::try_from(c::sim_timeout()).ok()
    }

    /// How often at this instant somebody looked for events.
    pub(crate) fn looks(&self) -> u64 {
        c::sim_spins()
    }

    /// How many random bytes were drawn.
    pub(crate) fn drawn(&self) -> u64 {
        c::sim_drawn()
    }

    /// The next thing that somebody did to a socket.
    pub(crate) fn next_act(&self) -> Option<Act> {
        let mut act = Act::default();
        (c::sim_next(&mut act) == 1).then_some(act)
    }

    /// What was written to a socket since it was asked last.
    pub(crate) fn take(&self, socket: u64) -> Option<u64> {
        Some(c::sim_take(socket)).filter(|chunk| *chunk != 0)
    }

    pub(crate) fn listener(&self, ip: u32, port: u32) -> Option<u64> {
        Some(c::sim_listener(ip, port)).filter(|socket| *socket != 0)
    }

    /// A connection from the socket `from` reaches a listener: the socket of its other end.
    pub(crate) fn accept(&self, listener: u64, from: u64) -> Option<u64> {
        Some(c::sim_accept(listener, from)).filter(|socket| *socket != 0)
    }

    pub(crate) fn connected(&self, socket: u64, peer: u64) {
        c::sim_connected(socket, peer);
    }

    /// Hands bytes to a socket; `false`: its owner is no more.
    pub(crate) fn deliver(&self, socket: u64, chunk: u64) -> bool {
        c::sim_deliver(socket, chunk) == 1
    }

    pub(crate) fn deliver_datagram(&self, ip: u32, port: u32, chunk: u64) -> bool {
        c::sim_deliver_datagram(ip, port, chunk) == 1
    }

    /// The other end will write no more.
    pub(crate) fn finish(&self, socket: u64) {
        c::sim_finish(socket);
    }

    pub(crate) fn break_off(&self, socket: u64, error: i32) {
        c::sim_break(socket, error);
    }

    pub(crate) fn is_closed(&self, socket: u64) -> bool {
        c::sim_is_closed(socket) == 1
    }

    /// A closed socket is not asked about any more.
    pub(crate) fn forget(&self, socket: u64) {
        c::sim_forget(socket);
    }

    pub(crate) fn free(&self, chunk: u64) {
        c::sim_chunk_free(chunk);
    }

    pub(crate) fn copy(&self, chunk: u64) -> u64 {
        c::sim_chunk_copy(chunk)
    }

    pub(crate) fn hash(&self, chunk: u64) -> u64 {
        c::sim_chunk_hash(chunk)
    }
}

/// Whether the runtime that looks for events now found none and would sleep.
pub(crate) fn is_idle() -> bool {
    c::sim_idle() == 1
}
