/* The part of the C library that a simulated world replaces: randomness, clocks, sockets and epoll.
 *
 * The definitions here take the place of libc's for the whole program. On a thread that entered a world they act on
 * that world; on any other they pass the call to the kernel. A world belongs to one thread, so nothing here is locked,
 * and several threads run worlds beside each other.
 *
 * This file only moves bytes and keeps readiness. What the network does (when bytes arrive, and whether) is decided by
 * the simulation, which is told of every act (`sim_next`) and answers with deliveries. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* What one end of a connection may have written that the other has not read. */
#define WINDOW_BYTES (512u << 10)
/* Datagrams that wait to be read. */
#define DATAGRAMS_MAX 1024
#define DATAGRAM_BYTES_MAX 65507
/* Looks for events at one instant beyond which a host is held to spin. */
#define SPINS_MAX 2000000

enum { ACT_CONNECT = 1, ACT_DATA, ACT_FINISH, ACT_CLOSE, ACT_DATAGRAM };

struct Act {
    uint32_t kind;
    uint32_t ip;   /* CONNECT, DATAGRAM: to whom. CLOSE: 1 if unread bytes were thrown away. */
    uint32_t port;
    uint32_t host; /* who acted */
    uint64_t socket;
    uint64_t chunk; /* DATAGRAM */
};

struct Bytes {
    uint8_t *data;
    size_t start, end, room;
};

struct Chunk {
    size_t length;
    uint32_t ip, port; /* of the sender, for datagrams */
    uint8_t data[];
};

struct Poll;

struct Socket {
    uint64_t id;
    int fd; /* -1: not accepted yet, or closed */
    bool datagram, listening, connected, connecting, closed, told_data, blocked;
    bool finished_in, finished_out, reset_told;
    int error;
    uint32_t host, peer_ip;
    uint16_t port, peer_port;
    uint64_t peer;
    struct Bytes in, out;
    size_t unread; /* written here, not read there */
    uint64_t *queue; /* listening: sockets to accept; datagrams: chunks */
    size_t queue_start, queue_end, queue_room;
    struct Poll *poll;
    uint32_t events, ready;
    epoll_data_t data;
    bool queued;
};

struct Poll {
    int uses;
    struct Socket **ready;
    size_t count, room;
};

struct Slot {
    struct Socket *socket;
    struct Poll *poll;
};

struct World {
    uint64_t now;
    int64_t wall_offset;
    uint32_t host;
    uint64_t random;
    uint64_t drawn;
    int64_t timeout;
    bool idle;
    uint64_t spins, spun_at;
    uint16_t next_port;
    struct Slot *slots;
    size_t slots_room;
    struct Socket **sockets; /* by id */
    size_t sockets_count, sockets_room;
    struct Chunk **chunks; /* by id */
    size_t chunks_count, chunks_room;
    uint64_t *free_chunks;
    size_t free_count, free_room;
    struct Socket **bound;
    size_t bound_count, bound_room;
    struct Act *acts;
    size_t acts_start, acts_end, acts_room;
    void (*on_sync)(int fd);
};

static __thread struct World *world;

static void *grown(void *of, size_t *room, size_t need, size_t each) {
    size_t before = *room;
    if (need <= before) return of;
    size_t now = before ? before * 2 : 16;
    while (now < need) now *= 2;
    void *bigger = realloc(of, now * each);
    if (!bigger) abort();
    memset((char *)bigger + before * each, 0, (now - before) * each);
    *room = now;
    return bigger;
}

static int fail(int error) {
    errno = error;
    return -1;
}

/* --- bytes, chunks --- */

static size_t length_of(const struct Bytes *bytes) { return bytes->end - bytes->start; }

static void append(struct Bytes *bytes, const void *data, size_t length) {
    if (bytes->start == bytes->end) bytes->start = bytes->end = 0;
    if (bytes->start > (64u << 10)) {
        memmove(bytes->data, bytes->data + bytes->start, length_of(bytes));
        bytes->end -= bytes->start;
        bytes->start = 0;
    }
    bytes->data = grown(bytes->data, &bytes->room, bytes->end + length, 1);
    memcpy(bytes->data + bytes->end, data, length);
    bytes->end += length;
}

static uint64_t new_chunk(const void *data, size_t length) {
    struct Chunk *chunk = malloc(sizeof *chunk + length);
    if (!chunk) abort();
    chunk->length = length;
    chunk->ip = chunk->port = 0;
    memcpy(chunk->data, data, length);
    uint64_t id;
    if (world->free_count) {
        id = world->free_chunks[--world->free_count];
    } else {
        if (world->chunks_count == 0) world->chunks_count = 1;
        id = world->chunks_count++;
        world->chunks = grown(world->chunks, &world->chunks_room, world->chunks_count, sizeof *world->chunks);
    }
    world->chunks[id] = chunk;
    return id;
}

static struct Chunk *chunk_of(uint64_t id) { return id < world->chunks_count ? world->chunks[id] : NULL; }

void sim_chunk_free(uint64_t id) {
    struct Chunk *chunk = chunk_of(id);
    if (!chunk) return;
    free(chunk);
    world->chunks[id] = NULL;
    world->free_chunks =
        grown(world->free_chunks, &world->free_room, world->free_count + 1, sizeof *world->free_chunks);
    world->free_chunks[world->free_count++] = id;
}

uint64_t sim_chunk_copy(uint64_t id) {
    struct Chunk *chunk = chunk_of(id);
    if (!chunk) return 0;
    uint64_t copy = new_chunk(chunk->data, chunk->length);
    world->chunks[copy]->ip = chunk->ip;
    world->chunks[copy]->port = chunk->port;
    return copy;
}

/* FNV-1a over eight bytes at a time: for telling runs apart, not against anybody. */
uint64_t sim_chunk_hash(uint64_t id) {
    struct Chunk *chunk = chunk_of(id);
    if (!chunk) return 0;
    uint64_t hash = 0xcbf29ce484222325u ^ chunk->length;
    size_t at = 0;
    for (; at + 8 <= chunk->length; at += 8) {
        uint64_t word;
        memcpy(&word, chunk->data + at, 8);
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 29;
    }
    for (; at < chunk->length; at++) hash = (hash ^ chunk->data[at]) * 0x100000001b3u;
    return hash;
}

uint64_t sim_chunk_length(uint64_t id) {
    struct Chunk *chunk = chunk_of(id);
    return chunk ? chunk->length : 0;
}

/* Turns one bit of it. */
void sim_chunk_damage(uint64_t id, uint64_t bit) {
    struct Chunk *chunk = chunk_of(id);
    if (chunk && chunk->length) chunk->data[bit / 8 % chunk->length] ^= (uint8_t)(1u << (bit % 8));
}

/* --- sockets --- */

static struct Socket *socket_of(uint64_t id) { return id < world->sockets_count ? world->sockets[id] : NULL; }

static struct Slot *slot_of(int fd) {
    return world && fd >= 0 && (size_t)fd < world->slots_room ? &world->slots[fd] : NULL;
}

static struct Socket *at(int fd) {
    struct Slot *slot = slot_of(fd);
    return slot ? slot->socket : NULL;
}

static struct Slot *make_slot(int fd) {
    world->slots = grown(world->slots, &world->slots_room, (size_t)fd + 1, sizeof *world->slots);
    return &world->slots[fd];
}

static struct Socket *new_socket(bool datagram) {
    struct Socket *socket = calloc(1, sizeof *socket);
    if (!socket) abort();
    if (world->sockets_count == 0) world->sockets_count = 1;
    socket->id = world->sockets_count++;
    socket->fd = -1;
    socket->datagram = datagram;
    socket->host = world->host;
    world->sockets = grown(world->sockets, &world->sockets_room, world->sockets_count, sizeof *world->sockets);
    world->sockets[socket->id] = socket;
    return socket;
}

/* A descriptor of the kernel stands for each socket, so that numbers are unique and flags can be set on it. */
static int open_descriptor(struct Socket *socket) {
    int fd = (int)syscall(SYS_eventfd2, 0, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fd;
    make_slot(fd)->socket = socket;
    socket->fd = fd;
    return fd;
}

static void act(uint32_t kind, struct Socket *socket, uint32_t ip, uint32_t port, uint64_t chunk) {
    if (world->acts_start == world->acts_end) world->acts_start = world->acts_end = 0;
    world->acts = grown(world->acts, &world->acts_room, world->acts_end + 1, sizeof *world->acts);
    world->acts[world->acts_end++] = (struct Act){kind, ip, port, socket->host, socket->id, chunk};
}

static void mark_ready(struct Socket *socket, uint32_t what) {
    struct Poll *poll = socket->poll;
    if (!poll) return;
    what &= socket->events | EPOLLERR | EPOLLHUP;
    if (!what) return;
    socket->ready |= what;
    if (socket->queued) return;
    socket->queued = true;
    poll->ready = grown(poll->ready, &poll->room, poll->count + 1, sizeof *poll->ready);
    poll->ready[poll->count++] = socket;
}

static void leave_poll(struct Socket *socket) {
    struct Poll *poll = socket->poll;
    if (poll && socket->queued) {
        size_t kept = 0;
        for (size_t i = 0; i < poll->count; i++)
            if (poll->ready[i] != socket) poll->ready[kept++] = poll->ready[i];
        poll->count = kept;
    }
    socket->queued = false;
    socket->ready = 0;
    socket->poll = NULL;
}

static uint32_t readiness(struct Socket *socket) {
    uint32_t what = 0;
    if (length_of(&socket->in) || socket->queue_start < socket->queue_end) what |= EPOLLIN;
    if (socket->finished_in) what |= EPOLLIN | EPOLLRDHUP;
    if (socket->datagram || (socket->connected && socket->unread < WINDOW_BYTES)) what |= EPOLLOUT;
    if (socket->error) what |= EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP;
    return what;
}

static void enqueue(struct Socket *socket, uint64_t item) {
    if (socket->queue_start == socket->queue_end) socket->queue_start = socket->queue_end = 0;
    socket->queue =
        grown(socket->queue, &socket->queue_room, socket->queue_end + 1, sizeof *socket->queue);
    socket->queue[socket->queue_end++] = item;
    mark_ready(socket, EPOLLIN);
}

static void free_socket(struct Socket *socket) {
    leave_poll(socket);
    if (socket->datagram)
        for (size_t i = socket->queue_start; i < socket->queue_end; i++) sim_chunk_free(socket->queue[i]);
    world->sockets[socket->id] = NULL;
    free(socket->in.data);
    free(socket->out.data);
    free(socket->queue);
    free(socket);
}

/* Those that may be reached by their port: listeners and datagram sockets. */
static void enter_bound(struct Socket *socket) {
    world->bound = grown(world->bound, &world->bound_room, world->bound_count + 1, sizeof *world->bound);
    world->bound[world->bound_count++] = socket;
}

static void leave_bound(struct Socket *socket) {
    size_t kept = 0;
    for (size_t i = 0; i < world->bound_count; i++)
        if (world->bound[i] != socket) world->bound[kept++] = world->bound[i];
    world->bound_count = kept;
}

static struct Socket *bound_to(uint32_t ip, uint16_t port, bool datagram) {
    for (size_t i = 0; i < world->bound_count; i++) {
        struct Socket *socket = world->bound[i];
        if (socket->datagram == datagram && socket->host == ip && socket->port == port) return socket;
    }
    return NULL;
}

static uint16_t free_port(void) {
    world->next_port = world->next_port < 32768 || world->next_port == 65535 ? 32768 : world->next_port + 1;
    return world->next_port;
}

/* --- what the simulation calls --- */

void sim_enter(uint64_t seed, void (*on_sync)(int fd)) {
    if (world) abort();
    struct World *new = calloc(1, sizeof *new);
    if (!new) abort();
    new->random = seed;
    new->on_sync = on_sync;
    world = new;
}

void sim_leave(void) {
    struct World *old = world;
    if (!old) return;
    for (size_t id = 1; id < old->sockets_count; id++)
        if (old->sockets[id]) free_socket(old->sockets[id]);
    for (size_t id = 1; id < old->chunks_count; id++) free(old->chunks[id]);
    free(old->slots);
    free(old->sockets);
    free(old->chunks);
    free(old->free_chunks);
    free(old->bound);
    free(old->acts);
    free(old);
    world = NULL;
}

void sim_now(uint64_t now) { world->now = now; }

/* From now on this host acts; its wall clock is off by so much. */
void sim_host(uint32_t ip, int64_t wall_offset) {
    world->host = ip;
    world->wall_offset = wall_offset;
}

/* Whether the last look for events found none and would have waited. */
uint32_t sim_idle(void) { return world && world->idle; }

/* For how long it would have waited, in milliseconds; negative: for ever. */
int64_t sim_timeout(void) { return world->timeout; }

uint64_t sim_spins(void) { return world->spins; }

/* How much randomness was asked for so far. */
uint64_t sim_drawn(void) { return world->drawn; }

uint32_t sim_next(struct Act *out) {
    if (world->acts_start == world->acts_end) return 0;
    *out = world->acts[world->acts_start++];
    return 1;
}

/* Takes what was written to a socket; 0: nothing. */
uint64_t sim_take(uint64_t id) {
    struct Socket *socket = socket_of(id);
    if (!socket) return 0;
    socket->told_data = false;
    size_t length = length_of(&socket->out);
    if (!length) return 0;
    uint64_t chunk = new_chunk(socket->out.data + socket->out.start, length);
    socket->out.start = socket->out.end = 0;
    return chunk;
}

/* Who listens there; 0: nobody. */
uint64_t sim_listener(uint32_t ip, uint32_t port) {
    struct Socket *socket = bound_to(ip, (uint16_t)port, false);
    return socket ? socket->id : 0;
}

/* A connection came in from `from`: the other end's number. */
uint64_t sim_accept(uint64_t listener, uint64_t from) {
    struct Socket *of = socket_of(listener), *peer = socket_of(from);
    if (!of || !peer) return 0;
    struct Socket *socket = new_socket(false);
    socket->host = of->host;
    socket->port = of->port;
    socket->peer_ip = peer->host;
    socket->peer_port = peer->port;
    socket->peer = peer->id;
    socket->connected = true;
    enqueue(of, socket->id);
    return socket->id;
}

void sim_connected(uint64_t id, uint64_t peer) {
    struct Socket *socket = socket_of(id);
    if (!socket || socket->closed) return;
    socket->connecting = false;
    socket->connected = true;
    socket->peer = peer;
    mark_ready(socket, EPOLLOUT);
}

/* 1: taken in. 0: nobody is there any more. The chunk is gone in either case. */
uint32_t sim_deliver(uint64_t id, uint64_t chunk_id) {
    struct Socket *socket = socket_of(id);
    struct Chunk *chunk = chunk_of(chunk_id);
    bool there = socket && chunk && !socket->closed && !socket->error;
    if (there) {
        append(&socket->in, chunk->data, chunk->length);
        mark_ready(socket, EPOLLIN);
    }
    sim_chunk_free(chunk_id);
    return there;
}

uint32_t sim_deliver_datagram(uint32_t ip, uint32_t port, uint64_t chunk_id) {
    struct Socket *socket = bound_to(ip, (uint16_t)port, true);
    if (!socket || !chunk_of(chunk_id) || socket->queue_end - socket->queue_start >= DATAGRAMS_MAX) {
        sim_chunk_free(chunk_id);
        return 0;
    }
    enqueue(socket, chunk_id);
    return 1;
}

/* The other end will write no more. */
void sim_finish(uint64_t id) {
    struct Socket *socket = socket_of(id);
    if (!socket || socket->closed) return;
    socket->finished_in = true;
    mark_ready(socket, EPOLLIN | EPOLLRDHUP);
}

/* The connection is broken, or could not be made. */
void sim_break(uint64_t id, int32_t error) {
    struct Socket *socket = socket_of(id);
    if (!socket || socket->closed || socket->error) return;
    socket->error = error;
    socket->connecting = false;
    mark_ready(socket, EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP);
}

/* Whether the owner has closed it, or it never was. */
uint32_t sim_is_closed(uint64_t id) {
    struct Socket *socket = socket_of(id);
    return !socket || socket->closed;
}

/* Nothing will be asked about a closed socket any more. */
void sim_forget(uint64_t id) {
    struct Socket *socket = socket_of(id);
    if (socket && socket->closed) free_socket(socket);
}

/* --- randomness and time --- */

ssize_t getrandom(void *buffer, size_t length, unsigned int flags) {
    if (!world) return syscall(SYS_getrandom, buffer, length, flags);
    uint8_t *out = buffer;
    for (size_t i = 0; i < length; i += 8) {
        uint64_t mixed = world->random += 0x9e3779b97f4a7c15u;
        mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
        mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
        mixed ^= mixed >> 31;
        memcpy(out + i, &mixed, length - i < 8 ? length - i : 8);
    }
    world->drawn += length;
    return (ssize_t)length;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    if (!world) return (int)syscall(SYS_clock_gettime, clock, out);
    int64_t time;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        /* The worlds begin on 1 January 2026. */
        time = 1767225600000000000 + (int64_t)world->now + world->wall_offset;
        break;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_BOOTTIME:
        time = 1000000000000 + (int64_t)world->now;
        break;
    default:
        return (int)syscall(SYS_clock_gettime, clock, out);
    }
    out->tv_sec = time / 1000000000;
    out->tv_nsec = time % 1000000000;
    return 0;
}

/* No process number leaves a world: what depends on it would differ from run to run. */
pid_t getpid(void) { return world ? 1000 : (pid_t)syscall(SYS_getpid); }

/* --- files: only their syncs are of interest --- */

int fsync(int fd) {
    if (!world) return (int)syscall(SYS_fsync, fd);
    if (world->on_sync) world->on_sync(fd);
    return 0;
}

int fdatasync(int fd) {
    if (!world) return (int)syscall(SYS_fdatasync, fd);
    if (world->on_sync) world->on_sync(fd);
    return 0;
}

/* --- sockets, as programs see them --- */

int socket(int domain, int type, int protocol) {
    if (!world || domain != AF_INET) return (int)syscall(SYS_socket, domain, type, protocol);
    return open_descriptor(new_socket((type & 0xf) == SOCK_DGRAM));
}

int bind(int fd, const struct sockaddr *address, socklen_t length) {
    struct Socket *socket = at(fd);
    if (!socket) return (int)syscall(SYS_bind, fd, address, length);
    const struct sockaddr_in *to = (const void *)address;
    uint16_t port = ntohs(to->sin_port);
    if (!port) port = free_port();
    else if (bound_to(socket->host, port, socket->datagram)) return fail(EADDRINUSE);
    socket->port = port;
    if (socket->datagram) enter_bound(socket);
    return 0;
}

int listen(int fd, int backlog) {
    struct Socket *socket = at(fd);
    if (!socket) return (int)syscall(SYS_listen, fd, backlog);
    if (bound_to(socket->host, socket->port, false)) return fail(EADDRINUSE);
    socket->listening = true;
    enter_bound(socket);
    return 0;
}

static void put_address(struct sockaddr *out, socklen_t *length, uint32_t ip, uint16_t port) {
    if (!out || !length) return;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(ip)};
    memcpy(out, &address, *length < sizeof address ? *length : sizeof address);
    *length = sizeof address;
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    struct Socket *listener = at(fd);
    if (!listener) return (int)syscall(SYS_accept4, fd, address, length, flags);
    while (listener->queue_start < listener->queue_end) {
        struct Socket *socket = socket_of(listener->queue[listener->queue_start++]);
        if (!socket) continue;
        put_address(address, length, socket->peer_ip, socket->peer_port);
        return open_descriptor(socket);
    }
    return fail(EAGAIN);
}

int connect(int fd, const struct sockaddr *address, socklen_t length) {
    struct Socket *socket = at(fd);
    if (!socket) return (int)syscall(SYS_connect, fd, address, length);
    const struct sockaddr_in *to = (const void *)address;
    if (to->sin_family != AF_INET) return fail(EAFNOSUPPORT);
    socket->peer_ip = ntohl(to->sin_addr.s_addr);
    socket->peer_port = ntohs(to->sin_port);
    if (!socket->port) socket->port = free_port();
    if (socket->datagram) return 0;
    socket->connecting = true;
    act(ACT_CONNECT, socket, socket->peer_ip, socket->peer_port, 0);
    return fail(EINPROGRESS);
}

int getsockname(int fd, struct sockaddr *address, socklen_t *length) {
    struct Socket *socket = at(fd);
    if (!socket) return (int)syscall(SYS_getsockname, fd, address, length);
    put_address(address, length, socket->host, socket->port);
    return 0;
}

int getpeername(int fd, struct sockaddr *address, socklen_t *length) {
    struct Socket *socket = at(fd);
    if (!socket) return (int)syscall(SYS_getpeername, fd, address, length);
    if (!socket->connected) return fail(ENOTCONN);
    put_address(address, length, socket->peer_ip, socket->peer_port);
    return 0;
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length) {
    if (!at(fd)) return (int)syscall(SYS_setsockopt, fd, level, name, value, length);
    return 0;
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *length) {
    struct Socket *socket = at(fd);
    if (!socket) return (int)syscall(SYS_getsockopt, fd, level, name, value, length);
    int answer = 0;
    if (level == SOL_SOCKET && name == SO_ERROR && socket->error && !socket->reset_told) {
        answer = socket->error;
        socket->reset_told = true;
    }
    if (level == SOL_SOCKET && name == SO_TYPE) answer = socket->datagram ? SOCK_DGRAM : SOCK_STREAM;
    memset(value, 0, *length);
    memcpy(value, &answer, *length < sizeof answer ? *length : sizeof answer);
    return 0;
}

static ssize_t take_in(struct Socket *socket, void *buffer, size_t length, int flags) {
    size_t there = length_of(&socket->in);
    if (!there) {
        if (socket->error) {
            if (socket->reset_told) return 0;
            socket->reset_told = true;
            return fail(socket->error);
        }
        if (socket->finished_in) return 0;
        if (!socket->connected) return fail(ENOTCONN);
        return fail(EAGAIN);
    }
    size_t taken = there < length ? there : length;
    memcpy(buffer, socket->in.data + socket->in.start, taken);
    if (flags & MSG_PEEK) return (ssize_t)taken;
    socket->in.start += taken;
    struct Socket *peer = socket_of(socket->peer);
    if (peer) {
        peer->unread -= taken < peer->unread ? taken : peer->unread;
        if (peer->blocked && peer->unread < WINDOW_BYTES / 2) {
            peer->blocked = false;
            mark_ready(peer, EPOLLOUT);
        }
    }
    return (ssize_t)taken;
}

static ssize_t take_datagram(struct Socket *socket, void *buffer, size_t length, struct sockaddr *address,
                             socklen_t *address_length) {
    if (socket->queue_start == socket->queue_end) return fail(EAGAIN);
    uint64_t id = socket->queue[socket->queue_start++];
    struct Chunk *chunk = chunk_of(id);
    size_t taken = chunk->length < length ? chunk->length : length;
    memcpy(buffer, chunk->data, taken);
    put_address(address, address_length, chunk->ip, (uint16_t)chunk->port);
    sim_chunk_free(id);
    return (ssize_t)taken;
}

static ssize_t put_out(struct Socket *socket, const void *buffer, size_t length) {
    if (socket->error || socket->finished_out) return fail(EPIPE);
    if (!socket->connected) return fail(socket->connecting ? EAGAIN : ENOTCONN);
    size_t room = socket->unread < WINDOW_BYTES ? WINDOW_BYTES - socket->unread : 0;
    size_t taken = length < room ? length : room;
    if (taken < length) socket->blocked = true;
    if (!taken && length) return fail(EAGAIN);
    append(&socket->out, buffer, taken);
    socket->unread += taken;
    if (!socket->told_data && taken) {
        socket->told_data = true;
        act(ACT_DATA, socket, 0, 0, 0);
    }
    return (ssize_t)taken;
}

ssize_t recvfrom(int fd, void *buffer, size_t length, int flags, struct sockaddr *address,
                 socklen_t *address_length) {
    struct Socket *socket = at(fd);
    if (!socket) return syscall(SYS_recvfrom, fd, buffer, length, flags, address, address_length);
    if (socket->datagram) return take_datagram(socket, buffer, length, address, address_length);
    return take_in(socket, buffer, length, flags);
}

ssize_t recv(int fd, void *buffer, size_t length, int flags) {
    return recvfrom(fd, buffer, length, flags, NULL, NULL);
}

ssize_t sendto(int fd, const void *buffer, size_t length, int flags, const struct sockaddr *address,
               socklen_t address_length) {
    struct Socket *socket = at(fd);
    if (!socket) return syscall(SYS_sendto, fd, buffer, length, flags, address, address_length);
    if (!socket->datagram) return put_out(socket, buffer, length);
    if (length > DATAGRAM_BYTES_MAX) return fail(EMSGSIZE);
    const struct sockaddr_in *to = (const void *)address;
    uint32_t ip = to ? ntohl(to->sin_addr.s_addr) : socket->peer_ip;
    uint16_t port = to ? ntohs(to->sin_port) : socket->peer_port;
    uint64_t chunk = new_chunk(buffer, length);
    world->chunks[chunk]->ip = socket->host;
    world->chunks[chunk]->port = socket->port;
    act(ACT_DATAGRAM, socket, ip, port, chunk);
    return (ssize_t)length;
}

ssize_t send(int fd, const void *buffer, size_t length, int flags) {
    return sendto(fd, buffer, length, flags, NULL, 0);
}

ssize_t readv(int fd, const struct iovec *parts, int count) {
    struct Socket *socket = at(fd);
    if (!socket) return syscall(SYS_readv, fd, parts, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        if (!parts[i].iov_len) continue;
        if (total && !length_of(&socket->in)) break;
        ssize_t taken = take_in(socket, parts[i].iov_base, parts[i].iov_len, 0);
        if (taken < 0) return total ? total : taken;
        total += taken;
        if ((size_t)taken < parts[i].iov_len) break;
    }
    return total;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct Socket *socket = at(fd);
    if (!socket) return syscall(SYS_writev, fd, parts, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        if (!parts[i].iov_len) continue;
        ssize_t taken = put_out(socket, parts[i].iov_base, parts[i].iov_len);
        if (taken < 0) return total ? total : taken;
        total += taken;
        if ((size_t)taken < parts[i].iov_len) break;
    }
    return total;
}

int shutdown(int fd, int how) {
    struct Socket *socket = at(fd);
    if (!socket) return (int)syscall(SYS_shutdown, fd, how);
    if (!socket->connected) return fail(ENOTCONN);
    if (how != SHUT_RD && !socket->finished_out) {
        socket->finished_out = true;
        act(ACT_FINISH, socket, 0, 0, 0);
    }
    return 0;
}

static void close_socket(struct Socket *socket) {
    leave_poll(socket);
    if (socket->listening || socket->datagram) leave_bound(socket);
    socket->closed = true;
    socket->fd = -1;
    if (socket->listening)
        for (size_t i = socket->queue_start; i < socket->queue_end; i++) {
            struct Socket *waiting = socket_of(socket->queue[i]);
            if (waiting) close_socket(waiting);
        }
    act(ACT_CLOSE, socket, length_of(&socket->in) > 0, 0, 0);
}

int close(int fd) {
    struct Slot *slot = slot_of(fd);
    if (slot && slot->socket) {
        close_socket(slot->socket);
        slot->socket = NULL;
    } else if (slot && slot->poll) {
        struct Poll *poll = slot->poll;
        slot->poll = NULL;
        if (--poll->uses == 0) {
            for (size_t id = 1; id < world->sockets_count; id++)
                if (world->sockets[id] && world->sockets[id]->poll == poll) leave_poll(world->sockets[id]);
            free(poll->ready);
            free(poll);
        }
    }
    return (int)syscall(SYS_close, fd);
}

int fcntl(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    long argument = va_arg(arguments, long);
    va_end(arguments);
    int result = (int)syscall(SYS_fcntl, fd, command, argument);
    struct Slot *slot = slot_of(fd);
    if (result >= 0 && slot && (command == F_DUPFD || command == F_DUPFD_CLOEXEC)) {
        struct Poll *poll = slot->poll;
        if (slot->socket) abort(); /* nobody duplicates sockets; it would need counting */
        if (poll) {
            poll->uses++;
            make_slot(result)->poll = poll;
        }
    }
    return result;
}

/* --- epoll: edge-triggered, and it never waits --- */

int epoll_create1(int flags) {
    int fd = (int)syscall(SYS_epoll_create1, flags);
    if (!world || fd < 0) return fd;
    struct Poll *poll = calloc(1, sizeof *poll);
    if (!poll) abort();
    poll->uses = 1;
    make_slot(fd)->poll = poll;
    return fd;
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event) {
    struct Slot *slot = slot_of(epoll);
    if (!slot || !slot->poll) return (int)syscall(SYS_epoll_ctl, epoll, operation, fd, event);
    struct Socket *socket = at(fd);
    /* What wakes from other threads: there are none. */
    if (!socket) return 0;
    leave_poll(socket);
    if (operation == EPOLL_CTL_DEL) return 0;
    socket->poll = slot->poll;
    socket->events = event->events;
    socket->data = event->data;
    mark_ready(socket, readiness(socket));
    return 0;
}

int epoll_wait(int epoll, struct epoll_event *events, int count, int timeout) {
    struct Slot *slot = slot_of(epoll);
    if (!slot || !slot->poll) return (int)syscall(SYS_epoll_wait, epoll, events, count, timeout);
    struct Poll *poll = slot->poll;
    int found = 0;
    size_t taken = 0;
    for (; taken < poll->count && found < count; taken++, found++) {
        struct Socket *socket = poll->ready[taken];
        events[found].events = socket->ready;
        events[found].data = socket->data;
        socket->ready = 0;
        socket->queued = false;
    }
    memmove(poll->ready, poll->ready + taken, (poll->count - taken) * sizeof *poll->ready);
    poll->count -= taken;
    world->spins = world->spun_at == world->now ? world->spins + 1 : 0;
    world->spun_at = world->now;
    world->timeout = timeout;
    world->idle = found == 0 && (timeout != 0 || world->spins > SPINS_MAX);
    return found;
}
