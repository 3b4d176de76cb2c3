/* A guest's requests, past Python: chains of a virtqueue become transfers on the one io_uring.
 *
 * A READ is a readv from the backing file into the guest's memory, a WRITE a writev out of it; not
 * a byte is copied here but headers. What is in the page cache is read at once, all else on the
 * ring. Then the reply's header is written and the chain goes back into the used ring. Whether to
 * interrupt is decided once for all that came back in a turn, or for every few that were read at
 * once. Every other request goes to Python, as pieces of memory.
 *
 * The driver is kicked for only when this thread is about to sleep (EVENT_IDX); as long as it
 * works or spins it looks at the available rings itself.
 *
 * The guest is hostile. What it writes is copied once, and the copy is checked and used: a
 * descriptor, an index, a header. Each address is held against the table of regions, each index
 * against the size of its table, and a chain has no more descriptors than its table. A queue that
 * breaks the rules is not taken from any more; the others are. See virtio 1.2, 2.7. */
#include "virtqueue.h"

#include "order.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4
#define NO_INTERRUPT 1
#define IN_HEADER sizeof(struct fuse_in_header)
#define OUT_HEADER sizeof(struct fuse_out_header)
#define ARGUMENTS (IN_HEADER + sizeof(struct fuse_write_in))

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

struct used_entry {
    uint32_t head;
    uint32_t length;
};

/* vhost-user.rst, "Inflight I/O tracking"; vhost/inflight.py has the other half. */
struct inflight_entry {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
};

struct inflight {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct inflight_entry entry[];
};

static const uint64_t one_event = 1;

static uint16_t avail_index(const struct uf_vring *q)
{
    return __atomic_load_n(&q->avail[1], __ATOMIC_ACQUIRE);
}

static uint16_t used_event(const struct uf_vring *q)
{
    return __atomic_load_n(&q->avail[2 + q->size], __ATOMIC_RELAXED);
}

static void set_avail_event(struct uf_vring *q, uint16_t index)
{
    __atomic_store_n((uint16_t *)(q->used + 4 + 8 * q->size), index, __ATOMIC_RELAXED);
}

/* Copy once: the compiler must not look again at what the guest may have changed. */
static void copy_once(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
    __asm__ volatile("" ::: "memory");
}

/* -- memory ----------------------------------------------------------------------------------- */

static const struct uf_region *region_of(const struct uf_guest *g, uint64_t address)
{
    for (uint32_t i = 0; i < g->region_count; i++)
        if (address - g->regions[i].guest < g->regions[i].size)
            return &g->regions[i];
    return NULL;
}

/* Pieces of memory for `length` bytes at a guest address, behind `n` others of which the last may
 * grow: how many there are then, or -1. */
static int translate(const struct uf_guest *g, uint64_t address, uint32_t length,
                     struct iovec *piece, uint32_t n, uint32_t room)
{
    while (length) {
        const struct uf_region *region = region_of(g, address);
        if (!region)
            return -1;
        uint64_t start = address - region->guest, left = region->size - start;
        uint32_t part = left < length ? (uint32_t)left : length;
        uint8_t *at = region->at + start;
        /* Where a region starts, the one before it in our memory is another one of the guest's. */
        if (n && start && (uint8_t *)piece[n - 1].iov_base + piece[n - 1].iov_len == at)
            piece[n - 1].iov_len += part;
        else if (n < room)
            piece[n++] = (struct iovec){.iov_base = at, .iov_len = part};
        else
            return -1;
        length -= part;
        address += part;
    }
    return (int)n;
}

static void log_pages(struct uf_guest *g, uint64_t guest, uint64_t length)
{
    for (uint64_t page = guest / UF_DIRTY_PAGE; page <= (guest + length - 1) / UF_DIRTY_PAGE; page++)
        if (page / 8 < g->log_size)
            __atomic_or_fetch(&g->log[page / 8], (uint8_t)(1u << page % 8), __ATOMIC_RELAXED);
}

static void log_piece(struct uf_guest *g, const uint8_t *at, uint64_t length)
{
    for (uint32_t i = 0; i < g->region_count; i++) {
        const struct uf_region *region = &g->regions[i];
        if (at >= region->at && (uint64_t)(at - region->at) < region->size) {
            log_pages(g, region->guest + (uint64_t)(at - region->at), length);
            return;
        }
    }
}

/* The part of some pieces from `start` on, `length` bytes long: how many pieces that is, or -1
 * if there is less. */
static int cut(const struct iovec *piece, uint32_t pieces, uint32_t start, uint32_t length,
               struct iovec *out)
{
    int n = 0;
    for (uint32_t i = 0; i < pieces && length; i++) {
        if (start >= piece[i].iov_len) {
            start -= (uint32_t)piece[i].iov_len;
            continue;
        }
        size_t part = piece[i].iov_len - start;
        if (part > length)
            part = length;
        out[n++] = (struct iovec){.iov_base = (uint8_t *)piece[i].iov_base + start,
                                  .iov_len = part};
        length -= (uint32_t)part;
        start = 0;
    }
    return length ? -1 : n;
}

static uint32_t gather(const struct uf_chain *c, void *to, uint32_t length)
{
    uint32_t done = 0;
    for (uint32_t i = 0; i < c->readable && done < length; i++) {
        size_t part = c->piece[i].iov_len < length - done ? c->piece[i].iov_len : length - done;
        copy_once((uint8_t *)to + done, c->piece[i].iov_base, part);
        done += (uint32_t)part;
    }
    return done;
}

static void scatter(const struct uf_chain *c, const void *from, uint32_t length)
{
    uint32_t done = 0;
    for (uint32_t i = c->readable; i < c->pieces && done < length; i++) {
        size_t part = c->piece[i].iov_len < length - done ? c->piece[i].iov_len : length - done;
        memcpy(c->piece[i].iov_base, (const uint8_t *)from + done, part);
        done += (uint32_t)part;
    }
}

/* -- chains ----------------------------------------------------------------------------------- */

static void break_queue(struct uf_guest *g, uint32_t queue, const char *fault)
{
    g->queue[queue].taking = false;
    g->fault[queue] = fault;
    g->broken |= 1ull << queue;
}

static const char *add_piece(const struct uf_guest *g, struct uf_chain *c,
                             const struct descriptor *d)
{
    bool write = d->flags & DESC_WRITE;
    uint32_t *bytes = write ? &c->write_bytes : &c->read_bytes;
    if (!write && c->pieces != c->readable)
        return "memory to read from behind memory to write to";
    if (d->length > UINT32_MAX - *bytes)
        return "a chain of more than 4 GiB";
    uint32_t first = write ? c->readable : 0;
    int n = translate(g, d->address, d->length, c->piece + first, c->pieces - first,
                      UF_PIECES - first);
    if (n < 0)
        return "memory that the guest does not have, or too many pieces";
    c->pieces = first + (uint32_t)n;
    if (!write)
        c->readable = c->pieces;
    *bytes += d->length;
    return NULL;
}

/* An indirect table is copied, since it may lie across regions: NULL if it is not one. */
static const struct descriptor *copy_table(const struct uf_guest *g, const struct descriptor *d,
                                           struct descriptor *copy, uint32_t *size)
{
    struct iovec piece[2];
    if (!d->length || d->length % sizeof(*d) || d->length / sizeof(*d) > UF_QUEUE_SIZE)
        return NULL;
    int n = translate(g, d->address, d->length, piece, 0, 2);
    if (n < 0)
        return NULL;
    size_t done = 0;
    for (int i = 0; i < n; done += piece[i++].iov_len)
        copy_once((uint8_t *)copy + done, piece[i].iov_base, piece[i].iov_len);
    *size = d->length / sizeof(*d);
    return copy;
}

/* Find the pieces of a chain: NULL, or what is wrong with it. */
static const char *walk(const struct uf_guest *g, const struct uf_vring *q, struct uf_chain *c)
{
    static __thread struct descriptor copy[UF_QUEUE_SIZE];
    const uint8_t *table = q->table;
    uint32_t size = q->size, left = q->size, index = c->head;
    bool indirect = false;
    c->readable = c->pieces = c->read_bytes = c->write_bytes = 0;
    for (;;) {
        struct descriptor d;
        copy_once(&d, table + (size_t)index * sizeof(d), sizeof(d));
        if (d.flags & DESC_INDIRECT) {
            if (indirect || d.flags & DESC_NEXT || !q->indirect)
                return "an indirect descriptor where there may be none";
            table = (const uint8_t *)copy_table(g, &d, copy, &size);
            if (!table)
                return "an indirect table that is none";
            indirect = true;
            left = size;
            index = 0;
            continue;
        }
        const char *fault = add_piece(g, c, &d);
        if (fault)
            return fault;
        if (!(d.flags & DESC_NEXT))
            return NULL;
        if (!--left)
            return "a chain that is longer than its table";
        if (d.next >= size)
            return "a descriptor beyond its table";
        index = d.next;
    }
}

static struct inflight *tracked(const struct uf_vring *q)
{
    return (struct inflight *)q->inflight;
}

/* Give a chain back to the driver, which hears of it later. */
static void push(struct uf_guest *g, struct uf_vring *q, uint16_t head, uint32_t written)
{
    uint32_t at = 4 + 8 * (q->used_next & (q->size - 1));
    struct inflight *track = tracked(q);
    *(struct used_entry *)(q->used + at) = (struct used_entry){.head = head, .length = written};
    if (track)
        track->last_batch_head = head;
    __atomic_store_n((uint16_t *)(q->used + 2), ++q->used_next, __ATOMIC_RELEASE);
    if (track) {
        __atomic_store_n(&track->entry[head].inflight, 0, __ATOMIC_RELEASE);
        track->used_idx = q->used_next;
    }
    if (g->log && q->log_used) {
        log_pages(g, q->log_used, 4);
        log_pages(g, q->log_used + at, sizeof(struct used_entry));
    }
}

static void free_chain(struct uf_guest *g, uint32_t chain)
{
    g->chains[chain].state = UF_CHAIN_FREE;
    g->spare[g->spares++] = chain;
}

static void finish(struct uf_guest *g, uint32_t chain, uint32_t written)
{
    struct uf_chain *c = &g->chains[chain];
    struct uf_vring *q = &g->queue[c->queue];
    uint32_t left = written;
    for (uint32_t i = c->readable; g->log && i < c->pieces && left; i++) {
        size_t part = c->piece[i].iov_len < left ? c->piece[i].iov_len : left;
        log_piece(g, c->piece[i].iov_base, part);
        left -= (uint32_t)part;
    }
    uf_end_write(&c->writes);
    q->under_way--;
    if (q->started)
        push(g, q, c->head, written);
    free_chain(g, chain);
}

/* -- requests --------------------------------------------------------------------------------- */

static void reply(struct uf_guest *g, uint32_t chain, int error, uint32_t bytes)
{
    struct uf_chain *c = &g->chains[chain];
    struct {
        struct fuse_out_header header;
        struct fuse_write_out out;
    } r = {.header = {.error = error, .unique = c->unique}};
    uint32_t data = 0, length = OUT_HEADER;
    if (error < -UF_MAX_ERROR)
        r.header.error = -EIO;
    if (!error && c->opcode == FUSE_WRITE) {
        r.out.size = bytes;
        length = sizeof(r);
    } else if (!error && c->opcode == FUSE_READ) {
        data = bytes;
    }
    uf_meter_end(&g->meter, chain, c->opcode, c->arrived_ns, uf_clock_ns(), error, bytes);
    r.header.len = length + data;
    scatter(c, &r, length);
    finish(g, chain, length + data);
}

static bool wants_interrupt(struct uf_vring *q)
{
    uint16_t old = q->told;
    if (old == q->used_next)
        return false;
    q->told = q->used_next;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!q->event_idx)
        return !(__atomic_load_n(&q->avail[0], __ATOMIC_RELAXED) & NO_INTERRUPT);
    return (uint16_t)(q->used_next - used_event(q) - 1) < (uint16_t)(q->used_next - old);
}

/* If the driver wants to be. */
static void interrupt(struct uf_vring *q)
{
    /* Not through the ring, which hands a write to an eventfd that may block to a thread. One
     * that is full tells all there is to tell. */
    if (wants_interrupt(q) && q->call_fd >= 0) {
        ssize_t written = write(q->call_fd, &one_event, sizeof(one_event));
        (void)written;
    }
}

static bool has_room(struct uf_guest *g)
{
    if (io_uring_sq_space_left(&g->ring->uring))
        return true;
    uf_flush(g->ring);
    return io_uring_sq_space_left(&g->ring->uring);
}

static uint64_t tagged(const struct uf_guest *g, unsigned tag, uint32_t number)
{
    return (uint64_t)tag << UF_TAG_SHIFT | (uint64_t)g->serial << 32 | number;
}

static struct io_uring_sqe *start_io(struct uf_guest *g, uint32_t chain,
                                     const struct uf_handle *h, uint8_t opcode,
                                     const void *address, uint32_t length, uint64_t offset)
{
    struct uf_chain *c = &g->chains[chain];
    struct io_uring_sqe *sqe = io_uring_get_sqe(&g->ring->uring);
    io_uring_prep_rw(opcode, sqe, h->fd, address, length, offset);
    io_uring_sqe_set_data64(sqe, tagged(g, UF_TAG_GUEST_IO, chain));
    c->handle = uf_row(h);
    c->state = UF_CHAIN_IO;
    g->handles.rows[c->handle].in_flight++;
    g->transfers++;
    g->ring->transfers++;
    return sqe;
}

static struct io_uring_sqe *start_transfer(struct uf_guest *g, uint32_t chain,
                                           const struct uf_handle *h, bool write,
                                           int pieces, uint64_t offset)
{
    const struct iovec *data = g->chains[chain].data;
    if (pieces == 1)
        return start_io(g, chain, h, write ? IORING_OP_WRITE : IORING_OP_READ, data->iov_base,
                        (uint32_t)data->iov_len, offset);
    return start_io(g, chain, h, write ? IORING_OP_WRITEV : IORING_OP_READV, data,
                    (uint32_t)pieces, offset);
}

/* What was moved without the ring. The driver hears of it while the next is moved: woken once all
 * were back, it would work and wait in turn with us. */
static void reply_moved(struct uf_guest *g, uint32_t chain, int error, uint32_t bytes)
{
    struct uf_vring *q = &g->queue[g->chains[chain].queue];
    g->moved += bytes;
    reply(g, chain, error, bytes);
    if ((uint16_t)(q->used_next - q->told) >= UF_EARLY)
        interrupt(q);
}

static void move_now(struct uf_guest *g, uint32_t chain, const struct uf_handle *h, bool write,
                     int pieces, uint64_t offset)
{
    const struct iovec *data = g->chains[chain].data;
    ssize_t done = write ? pwritev(h->fd, data, pieces, (off_t)offset)
                         : preadv(h->fd, data, pieces, (off_t)offset);
    reply_moved(g, chain, done < 0 ? -errno : 0, done < 0 ? 0 : (uint32_t)done);
}

/* What is cached is read without the ring, which would give nothing back before all of a batch is
 * read. Looked for in vain again and again, it is looked for less and less often. */
static bool read_cached(struct uf_guest *g, uint32_t chain, const struct uf_handle *h, int pieces,
                        const struct fuse_read_in *arg)
{
    if (h->flags & O_DIRECT)
        return false;
    if (g->unsought) {
        g->unsought--;
        return false;
    }
    const struct iovec *data = g->chains[chain].data;
    ssize_t done = preadv2(h->fd, data, pieces, (off_t)arg->offset, RWF_NOWAIT);
    if (done != (ssize_t)arg->size) {
        g->misses += g->misses < 10;
        g->unsought = 1u << g->misses;
        return false;
    }
    g->misses = 0;
    reply_moved(g, chain, 0, arg->size);
    return true;
}

/* It is among the transfers, for as long as its memory has to stay; its handle is looked up anew. */
static void put_behind(struct uf_guest *g, uint32_t chain, uint64_t nodeid,
                       const struct fuse_read_in *arg)
{
    struct uf_chain *c = &g->chains[chain];
    c->state = UF_CHAIN_BEHIND;
    c->nodeid = nodeid;
    c->read = *arg;
    g->behind++;
    g->transfers++;
}

static void leave_behind(struct uf_guest *g)
{
    g->behind--;
    g->transfers--;
}

static bool serve_read(struct uf_guest *g, uint32_t chain, uint64_t nodeid, const void *body)
{
    struct uf_chain *c = &g->chains[chain];
    struct fuse_read_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_to_read(&g->handles, nodeid, &arg);
    if (c->read_bytes != IN_HEADER + sizeof(arg) || !h ||
        !uf_is_transfer(arg.size, INT32_MAX, arg.offset) || !has_room(g))
        return false;
    int pieces = cut(c->piece + c->readable, c->pieces - c->readable, OUT_HEADER, arg.size,
                     c->data);
    if (pieces < 0)
        return false;
    if (h->flags & UF_HANDLE_CACHED && uf_is_written(&g->handles, nodeid)) {
        put_behind(g, chain, nodeid, &arg);
        return true;
    }
    uf_count_moved(&g->handles, h, arg.size);
    if (uf_is_better_now(h, arg.size))
        move_now(g, chain, h, false, pieces, arg.offset);
    else if (!read_cached(g, chain, h, pieces, &arg))
        start_transfer(g, chain, h, false, pieces, arg.offset);
    return true;
}

static bool serve_write(struct uf_guest *g, uint32_t chain, uint64_t nodeid, const void *body)
{
    struct uf_chain *c = &g->chains[chain];
    struct fuse_write_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_to_write(&g->handles, nodeid, &arg);
    if (c->read_bytes - ARGUMENTS != arg.size || !h ||
        !uf_is_transfer(arg.size, INT32_MAX, arg.offset) ||
        c->write_bytes < OUT_HEADER + sizeof(struct fuse_write_out) || !has_room(g))
        return false;
    int pieces = cut(c->piece, c->readable, ARGUMENTS, arg.size, c->data);
    if (pieces < 0)
        return false;
    uf_count_moved(&g->handles, h, arg.size);
    if (!(arg.write_flags & FUSE_WRITE_KILL_SUIDGID) && uf_is_better_now(h, arg.size))
        move_now(g, chain, h, true, pieces, arg.offset);
    else
        uf_as_asked(&g->handles, h, &arg, start_transfer(g, chain, h, true, pieces, arg.offset));
    return true;
}

static bool serve_fsync(struct uf_guest *g, uint32_t chain, uint64_t nodeid, const void *body)
{
    struct uf_chain *c = &g->chains[chain];
    struct fuse_fsync_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_find_handle(&g->handles, arg.fh, nodeid, UF_HANDLE_FAST);
    if (c->read_bytes != IN_HEADER + sizeof(arg) || c->write_bytes < OUT_HEADER || !h ||
        !has_room(g))
        return false;
    struct io_uring_sqe *sqe = start_io(g, chain, h, IORING_OP_FSYNC, NULL, 0, 0);
    sqe->fsync_flags = arg.fsync_flags & FUSE_FSYNC_FDATASYNC ? IORING_FSYNC_DATASYNC : 0;
    return true;
}

static bool serve_flush(struct uf_guest *g, uint32_t chain, uint64_t nodeid, const void *body)
{
    struct uf_chain *c = &g->chains[chain];
    struct fuse_flush_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_find_handle(&g->handles, arg.fh, nodeid, UF_HANDLE_FAST);
    bool locked = uf_has_locks(&g->handles);
    if (c->read_bytes != IN_HEADER + sizeof(arg) || c->write_bytes < OUT_HEADER || !h || locked)
        return false;
    reply(g, chain, uf_close_duplicate(h), 0);
    return true;
}

/* True if the request is under way or answered; false leaves it to Python. */
static bool serve_request(struct uf_guest *g, uint32_t chain)
{
    struct uf_chain *c = &g->chains[chain];
    uint8_t message[ARGUMENTS] = {0};
    struct fuse_in_header in;
    gather(c, message, sizeof(message));
    memcpy(&in, message, sizeof(in));
    c->unique = in.unique;
    c->opcode = in.opcode < UF_OPCODES ? in.opcode : UF_OPCODES - 1;
    c->arrived_ns = g->now_ns;
    uf_meter_begin(&g->meter, chain, message,
                   c->read_bytes < ARGUMENTS ? c->read_bytes : ARGUMENTS);
    if (in.opcode == FUSE_WRITE && c->read_bytes >= ARGUMENTS)
        c->writes = uf_begin_write(&g->handles, in.nodeid, message + sizeof(in));
    if (!g->fast || in.len != c->read_bytes)
        return false;
    switch (in.opcode) {
    case FUSE_READ:
        return serve_read(g, chain, in.nodeid, message + sizeof(in));
    case FUSE_WRITE:
        return serve_write(g, chain, in.nodeid, message + sizeof(in));
    case FUSE_FSYNC:
        return serve_fsync(g, chain, in.nodeid, message + sizeof(in));
    case FUSE_FLUSH:
        return serve_flush(g, chain, in.nodeid, message + sizeof(in));
    default:
        return false;
    }
}

static void take_chain(struct uf_guest *g, uint32_t queue, uint16_t head)
{
    struct uf_vring *q = &g->queue[queue];
    uint32_t chain = g->spare[--g->spares];
    struct uf_chain *c = &g->chains[chain];
    c->head = head;
    c->queue = (uint16_t)queue;
    const char *fault = walk(g, q, c);
    if (!fault && c->read_bytes < IN_HEADER)
        fault = "a request that is shorter than its header";
    if (!fault && q->under_way >= q->size)
        fault = "more requests than the queue has entries";
    if (fault) {
        free_chain(g, chain);
        break_queue(g, queue, fault);
        return;
    }
    q->under_way++;
    if (serve_request(g, chain)) {
        g->fast_requests[c->opcode]++;
        return;
    }
    c->state = UF_CHAIN_PYTHON;
    g->python[g->python_count++] = chain;
}

static void track(struct uf_vring *q, uint16_t head)
{
    struct inflight_entry *entry = &tracked(q)->entry[head];
    entry->counter = ++q->counter;
    __atomic_store_n(&entry->inflight, 1, __ATOMIC_RELEASE);
}

/* What the driver offers, bounded, so that whatever else there is has its turn: how many were
 * taken. */
static unsigned take(struct uf_guest *g, uint32_t queue)
{
    struct uf_vring *q = &g->queue[queue];
    unsigned taken = 0;
    g->moved = 0;
    while (q->taking && q->resumed && g->spares) {
        uint16_t head = q->resume[--q->resumed];
        take_chain(g, queue, head);
        taken++;
    }
    while (q->taking && g->spares && taken < UF_TAKE && g->moved < UF_TAKE_BYTES) {
        uint16_t offered = (uint16_t)(avail_index(q) - q->next);
        if (!offered)
            break;
        uint16_t head = __atomic_load_n(&q->avail[2 + (q->next & (q->size - 1))], __ATOMIC_RELAXED);
        if (offered > q->size || head >= q->size) {
            break_queue(g, queue, "an index beyond the queue");
            break;
        }
        if (q->inflight)
            track(q, head);
        q->next++;
        q->waking = false;
        take_chain(g, queue, head);
        taken++;
    }
    return taken;
}

/* -- turns ------------------------------------------------------------------------------------ */

static void settle_queue(struct uf_guest *g, uint32_t queue)
{
    struct uf_vring *q = &g->queue[queue];
    interrupt(q);
    if (g->polls && q->taking && !q->armed && has_room(g)) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&g->ring->uring);
        io_uring_prep_poll_multishot(sqe, q->kick_fd, POLLIN);
        io_uring_sqe_set_data64(sqe, tagged(g, UF_TAG_KICK, ++q->polls << 8 | queue));
        q->armed = true;
    }
}

/* Start the READs whose WRITEs are done. */
static void serve_behind(struct uf_guest *g)
{
    for (uint32_t chain = 0; g->behind && chain < g->chain_count; chain++) {
        struct uf_chain *c = &g->chains[chain];
        if (c->state != UF_CHAIN_BEHIND || uf_is_written(&g->handles, c->nodeid) || !has_room(g))
            continue;
        leave_behind(g);
        if (!serve_read(g, chain, c->nodeid, &c->read))
            reply(g, chain, -EBADF, 0);
    }
}

void uf_guests_settle(struct uf_ring *r)
{
    for (struct uf_guest *g = r->guests; g; g = g->next) {
        serve_behind(g);
        for (uint32_t queue = 0; queue < g->queues; queue++)
            if (g->queue[queue].started)
                settle_queue(g, queue);
    }
}

static bool is_ready(const struct uf_guest *g, const struct uf_vring *q)
{
    return q->taking && g->spares && (q->resumed || avail_index(q) != q->next);
}

bool uf_guests_ready(const struct uf_ring *r)
{
    for (const struct uf_guest *g = r->guests; g; g = g->next)
        for (uint32_t queue = 0; queue < g->queues; queue++)
            if (is_ready(g, &g->queue[queue]))
                return true;
    return false;
}

bool uf_guests_ask(struct uf_ring *r)
{
    bool asked = false;
    for (struct uf_guest *g = r->guests; g; g = g->next)
        for (uint32_t queue = 0; queue < g->queues; queue++) {
            struct uf_vring *q = &g->queue[queue];
            if (!q->taking || q->waking)
                continue;
            if (q->event_idx)
                set_avail_event(q, q->next);
            q->waking = asked = true;
        }
    if (asked)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return uf_guests_ready(r);
}

static void end_transfer(struct uf_guest *g, uint32_t chain, int res)
{
    struct uf_chain *c = &g->chains[chain];
    if (chain >= g->chain_count || c->state != UF_CHAIN_IO)
        return;
    g->handles.rows[c->handle].in_flight--;
    g->transfers--;
    g->ring->transfers--;
    reply(g, chain, res == -ECANCELED ? -EINTR : res < 0 ? res : 0, res < 0 ? 0 : (uint32_t)res);
}

/* A kick, for which uf_guests_turn() looks; or the end of a poll, which is then armed again. */
static void end_poll(struct uf_guest *g, uint32_t queue, uint32_t poll,
                     const struct io_uring_cqe *cqe)
{
    struct uf_vring *q = &g->queue[queue];
    if (cqe->flags & IORING_CQE_F_MORE || poll != (q->polls & 0xffffff))
        return;
    q->armed = false;
    if (cqe->res < 0 && q->taking)
        break_queue(g, queue, "kicks cannot be waited for");
}

void uf_guests_tick(struct uf_ring *r)
{
    uint64_t now = uf_clock_ns();
    for (struct uf_guest *g = r->guests; g; g = g->next)
        g->now_ns = now;
}

void uf_guests_complete(struct uf_ring *r, const struct io_uring_cqe *cqe)
{
    struct uf_guest *g = r->guests;
    while (g && g->serial != (cqe->user_data >> 32 & UF_SERIAL_MASK))
        g = g->next;
    if (!g)
        return;
    uint32_t number = (uint32_t)cqe->user_data;
    if (cqe->user_data >> UF_TAG_SHIFT == UF_TAG_GUEST_IO)
        end_transfer(g, number, cqe->res);
    else
        end_poll(g, number & 0xff, number >> 8, cqe);
}

int uf_guests_turn(struct uf_ring *r, struct uf_batch *out, int n, unsigned *consumed)
{
    for (struct uf_guest *g = r->guests; g; g = g->next) {
        for (uint32_t queue = 0; queue < g->queues; queue++)
            if (g->queue[queue].taking)
                *consumed += take(g, queue);
        if ((g->python_count || g->broken) && n < UF_BATCH) {
            out->user_data[n] = tagged(g, UF_TAG_GUEST, 0);
            out->res[n] = 0;
            out->flags[n++] = 0;
        }
    }
    return n;
}

/* -- for Python ------------------------------------------------------------------------------- */

int uf_guest_open(struct uf_guest *g)
{
    g->serial = g->ring->pumps++ & UF_SERIAL_MASK;
    g->chains = mmap(NULL, g->chain_count * sizeof(*g->chains), PROT_READ | PROT_WRITE,
                     MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
    g->spare = calloc(g->chain_count, sizeof(*g->spare));
    g->python = calloc(g->chain_count, sizeof(*g->python));
    if (g->chains == MAP_FAILED || !g->spare || !g->python) {
        uf_guest_close(g);
        return -ENOMEM;
    }
    for (uint32_t chain = g->chain_count; chain-- > 0;)
        g->spare[g->spares++] = chain;
    g->next = g->ring->guests;
    g->ring->guests = g;
    return 0;
}

/* No transfer may be under way. */
void uf_guest_close(struct uf_guest *g)
{
    for (struct uf_guest **at = &g->ring->guests; *at; at = &(*at)->next)
        if (*at == g) {
            *at = g->next;
            break;
        }
    if (g->chains && g->chains != MAP_FAILED)
        munmap(g->chains, g->chain_count * sizeof(*g->chains));
    free(g->spare);
    free(g->python);
    g->chains = NULL;
    g->spare = g->python = NULL;
}

/* Take from a queue whose fields are filled in. */
int uf_guest_start(struct uf_guest *g, uint32_t queue)
{
    struct uf_vring *q = &g->queue[queue];
    q->used_next = q->told = __atomic_load_n((uint16_t *)(q->used + 2), __ATOMIC_RELAXED);
    if (queue >= g->queues)
        g->queues = queue + 1;
    q->started = q->taking = true;
    q->waking = q->armed = false;
    g->broken &= ~(1ull << queue);
    return 0;
}

/* Take no more; what is under way still comes back, as long as `started`. */
int uf_guest_stop(struct uf_guest *g, uint32_t queue)
{
    struct uf_vring *q = &g->queue[queue];
    q->taking = false;
    if (!q->armed)
        return 0;
    if (!has_room(g))
        return -EBUSY;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&g->ring->uring);
    io_uring_prep_rw(IORING_OP_POLL_REMOVE, sqe, -1, NULL, 0, 0);
    sqe->addr = tagged(g, UF_TAG_KICK, q->polls << 8 | queue);
    io_uring_sqe_set_data64(sqe, tagged(g, UF_TAG_IGNORE, 0));
    q->armed = false;
    return 0;
}

/* The requests that Python is to answer, as far as there is room for them. */
uint32_t uf_guest_take(struct uf_guest *g, uint32_t *chains, uint32_t room)
{
    uint32_t n = g->python_count < room ? g->python_count : room;
    memcpy(chains, g->python, n * sizeof(*chains));
    g->python_count -= n;
    memmove(g->python, g->python + n, g->python_count * sizeof(*chains));
    return n;
}

/* A request of Python's is answered, with `written` bytes in its memory. */
int uf_guest_finish(struct uf_guest *g, uint32_t chain, uint32_t written)
{
    if (chain >= g->chain_count || g->chains[chain].state != UF_CHAIN_PYTHON)
        return -EINVAL;
    finish(g, chain, written);
    return 0;
}

/* A chain that was not taken here is answered. */
int uf_guest_give(struct uf_guest *g, uint32_t queue, uint16_t head, uint32_t written)
{
    if (queue >= UF_QUEUES || !g->queue[queue].started || head >= g->queue[queue].size)
        return -EINVAL;
    push(g, &g->queue[queue], head, written);
    return 0;
}

/* Cancel every transfer; how many there are. */
int uf_guest_cancel(struct uf_guest *g)
{
    for (uint32_t chain = 0; g->transfers && chain < g->chain_count; chain++) {
        if (g->chains[chain].state == UF_CHAIN_BEHIND) {
            leave_behind(g);
            reply(g, chain, -EINTR, 0);
        }
        if (g->chains[chain].state != UF_CHAIN_IO)
            continue;
        if (!has_room(g))
            return -EBUSY;
        struct io_uring_sqe *sqe = io_uring_get_sqe(&g->ring->uring);
        io_uring_prep_rw(IORING_OP_ASYNC_CANCEL, sqe, -1, NULL, 0, 0);
        sqe->addr = tagged(g, UF_TAG_GUEST_IO, chain);
        io_uring_sqe_set_data64(sqe, tagged(g, UF_TAG_IGNORE, 0));
    }
    return (int)g->transfers;
}
