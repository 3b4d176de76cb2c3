/* The pump moves file data between a FUSE device and backing files, all of it on one io_uring.
 *
 * One multishot read (IORING_OP_READ_MULTISHOT) on the device lasts as long as the mount: the
 * kernel picks a free slot for each request and posts a completion, so requests arrive without a
 * system call of their own. A READ or WRITE on a handle of the shared table becomes a chain of
 * two entries: the transfer on the backing file, and behind it the reply, written before it is
 * known whether the transfer will succeed. If it does, in full, the kernel goes on to the reply by
 * itself and only the reply posts a completion. If not, the chain breaks, the transfer posts its
 * result, and the right reply is written then. FSYNC, FLUSH and READDIR are served too, LOOKUP,
 * GETATTR, SETATTR, CREATE, UNLINK and RMDIR as far as metadata.c may; everything else goes to
 * Python, what nobody waits for a little later (late.c).
 *
 * A slot is one page and then the data: a request is read to the end of that page, so that what
 * follows the 80 bytes of a WRITE's headers is page-aligned, as O_DIRECT wants it.
 *
 *     base                         base+4016        base+4096                base+slot_size
 *     | reply to WRITE, FSYNC ...  | request headers | data                              |
 *                                       reply to READ: 16 bytes | data
 *
 * The memory of a slot belongs to its request from the completion of the device read until the
 * completion of the reply (or until Python drops it); then the kernel may fill it again.
 *
 * Two things no request may bring about, whoever sent it: that a slot is given back while the
 * kernel still uses it, and that a reply goes out before its transfer has ended. Hence every
 * completion is held against the state of its slot, and nobody who waits is left without a reply:
 * where there is no room to queue one, it is written at once. */
#include "crew.h"
#include "dirents.h"
#include "entry.h"
#include "late.h"
#include "metadata.h"
#include "order.h"
#include "slots.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define UF_OP_READ_MULTISHOT 49 /* Linux 6.7; not in older headers */
#define UF_BUFFER_GROUP 0
#define UF_SLOW_WRITE_NS 1000000u /* what takes that long has waited for something */
#define UF_WRITE_CAUTION 1024u    /* writes */
#define UF_LEAST_LISTING 1024 /* holds an entry with the longest of names */

_Static_assert(sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in) == UF_IN_SIZE,
               "a WRITE's data begins a page");
_Static_assert(sizeof(struct fuse_in_header) + sizeof(struct fuse_read_in) == UF_IN_SIZE,
               "a READ's headers are as long as a WRITE's");

struct write_reply {
    struct fuse_out_header header;
    struct fuse_write_out out;
};

/* -- slots ------------------------------------------------------------------------------------ */

/* The request is done with; settle() may offer its slot to the kernel again. */
static void free_slot(struct uf_pump *p, uint32_t slot)
{
    uf_pump_count(p, slot);
    uf_put_slot(p, slot);
}

/* -- queueing --------------------------------------------------------------------------------- */

static struct io_uring_sqe *queue(struct uf_pump *p, unsigned tag, uint32_t slot, uint8_t opcode,
                                  int fd, const void *addr, uint32_t length, uint64_t offset)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring->uring);
    io_uring_prep_rw(opcode, sqe, fd, addr, length, offset);
    io_uring_sqe_set_data64(sqe, uf_pump_data(p, tag, slot));
    return sqe;
}

/* A transfer within the registered part of a slot names the buffer, which saves the kernel from
 * looking its pages up. */
static void use_fixed(const struct uf_pump *p, struct io_uring_sqe *sqe, uint32_t slot)
{
    uint64_t end = sqe->addr + sqe->len - (uint64_t)(uintptr_t)uf_slot_base(p, slot);
    if (end > p->fixed_bytes)
        return;
    sqe->opcode = sqe->opcode == IORING_OP_READ ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
    sqe->buf_index = (uint16_t)(p->fixed_base + slot);
}

/* The device is a registered file: a chain resolves the descriptor of its reply only when it gets
 * there, and by then a plain number might mean another file. */
static struct io_uring_sqe *queue_on_device(struct uf_pump *p, unsigned tag, uint32_t slot,
                                            uint8_t opcode, const void *addr, uint32_t length)
{
    struct io_uring_sqe *sqe = queue(p, tag, slot, opcode, (int)p->device_file, addr, length, 0);
    sqe->flags |= IOSQE_FIXED_FILE;
    return sqe;
}

static void queue_cancel(struct uf_pump *p, unsigned tag, uint32_t slot)
{
    struct io_uring_sqe *sqe = queue(p, UF_TAG_IGNORE, 0, IORING_OP_ASYNC_CANCEL, -1, NULL, 0, 0);
    sqe->addr = uf_pump_data(p, tag, slot);
}

static void fill_header(struct fuse_out_header *out, uint64_t unique, uint32_t length, int error)
{
    out->len = length;
    out->error = error < -UF_MAX_ERROR ? -EIO : error;
    out->unique = unique;
}

static void finish_reply(struct uf_pump *p, uint32_t slot, int res);

/* Send a reply that waits for nothing. The device takes it at once, so its completion is nothing
 * to wake up for. Where requests come one by one it is written here: there is nothing else to
 * submit with it, and the client is awake the sooner. */
static void send_reply(struct uf_pump *p, uint32_t slot, const void *reply, uint32_t length,
                       enum uf_slot_state state)
{
    p->slots[slot].answered_ns = uf_clock_ns();
    if (uf_is_entry(p, slot)) {
        uf_entry_commit(p, slot, reply, length);
        return;
    }
    p->slots[slot].state = state;
    if (p->ring->last_batch > 1 && uf_pump_room(p, 1)) {
        /* Not as a registered buffer: the device takes only memory it can look up itself. */
        queue_on_device(p, UF_TAG_REPLY, slot, IORING_OP_WRITE, reply, length);
        p->ring->at_once++;
        return;
    }
    ssize_t written = write(p->device_fd, reply, length);
    finish_reply(p, slot, written < 0 ? -errno : 0);
}

static void send_error(struct uf_pump *p, uint32_t slot, int error, enum uf_slot_state state)
{
    struct fuse_out_header *out = (struct fuse_out_header *)uf_slot_base(p, slot);
    p->slots[slot].error = error;
    fill_header(out, p->slots[slot].unique, sizeof(*out), error);
    send_reply(p, slot, out, sizeof(*out), state);
}

/* -- requests --------------------------------------------------------------------------------- */

static void claim(struct uf_pump *p, uint32_t slot, const struct uf_handle *h, uint32_t size)
{
    struct uf_slot *s = &p->slots[slot];
    s->handle = uf_row(h);
    s->size = size;
    s->state = UF_SLOT_IO;
    if (!p->apart)
        p->handles.rows[s->handle].in_flight++;
    uf_count_moved(&p->handles, h, size);
    p->ring->transfers++;
    p->ring->idle_turns = 0;
    p->fast_requests[s->opcode]++;
}

static void unclaim(struct uf_pump *p, uint32_t slot)
{
    struct uf_slot *s = &p->slots[slot];
    uf_end_write(&p->slots[slot].writes);
    if (!s->handle)
        return;
    if (!p->apart)
        p->handles.rows[s->handle].in_flight--;
    p->ring->transfers--;
    s->handle = 0;
}

/* The transfer, and behind it the reply that holds if the transfer succeeds in full. */
static void queue_chain(struct uf_pump *p, uint32_t slot, struct io_uring_sqe *transfer,
                        const void *reply, uint32_t length)
{
    transfer->flags |= IOSQE_IO_LINK;
    if (uf_is_entry(p, slot)) {
        uf_entry_chain(p, slot, reply, length);
        return;
    }
    transfer->flags |= IOSQE_CQE_SKIP_SUCCESS;
    queue_on_device(p, UF_TAG_CHAINED, slot, IORING_OP_WRITE, reply, length);
}

/* Answer with the result of a transfer whose reply is not under way. */
static void finish_io(struct uf_pump *p, uint32_t slot, int res)
{
    struct uf_slot *s = &p->slots[slot];
    struct fuse_out_header *out = (struct fuse_out_header *)uf_slot_base(p, slot);
    uint32_t length = sizeof(*out);
    unclaim(p, slot);
    if (res < 0) {
        send_error(p, slot, res == -ECANCELED ? -EINTR : res, UF_SLOT_REPLY);
        return;
    }
    if (s->opcode == FUSE_READ) {
        out = (struct fuse_out_header *)uf_slot_data(p, slot) - 1;
        length += (uint32_t)res;
    } else if (s->opcode == FUSE_WRITE) {
        ((struct write_reply *)out)->out = (struct fuse_write_out){.size = (uint32_t)res};
        length = sizeof(struct write_reply);
    }
    s->moved = (uint32_t)res;
    fill_header(out, s->unique, length, 0);
    send_reply(p, slot, out, length, UF_SLOT_REPLY);
}

static void transfer_now(struct uf_pump *p, uint32_t slot, const struct uf_handle *h,
                         uint32_t size, uint64_t offset)
{
    struct uf_slot *s = &p->slots[slot];
    uint8_t *data = uf_slot_data(p, slot);
    ssize_t done = s->opcode == FUSE_READ ? pread(h->fd, data, size, (off_t)offset)
                                          : pwrite(h->fd, data, size, (off_t)offset);
    p->fast_requests[s->opcode]++;
    uf_count_moved(&p->handles, h, size);
    finish_io(p, slot, done < 0 ? -errno : (int)done);
}

static void queue_read(struct uf_pump *p, uint32_t slot, int fd, uint64_t offset)
{
    struct uf_slot *s = &p->slots[slot];
    uint8_t *data = uf_slot_data(p, slot);
    struct fuse_out_header *out = (struct fuse_out_header *)data - 1;
    fill_header(out, s->unique, (uint32_t)sizeof(*out) + s->size, 0);
    struct io_uring_sqe *sqe =
        queue(p, UF_TAG_IO, slot, IORING_OP_READ, fd, data, s->size, offset);
    use_fixed(p, sqe, slot);
    queue_chain(p, slot, sqe, out, out->len);
}

/* Start a READ whose WRITE is done; its message is still in its slot. */
static void start_behind(struct uf_pump *p, uint32_t slot)
{
    struct fuse_in_header in;
    struct fuse_read_in arg;
    memcpy(&in, uf_slot_data(p, slot) - UF_IN_SIZE, sizeof(in));
    if (uf_is_written(&p->handles, in.nodeid) || !uf_pump_room(p, 2))
        return;
    memcpy(&arg, uf_slot_data(p, slot) - sizeof(arg), sizeof(arg));
    const struct uf_handle *h = uf_to_read(&p->handles, in.nodeid, &arg);
    p->behind--;
    p->slots[slot].state = UF_SLOT_IO;
    if (h)
        queue_read(p, slot, h->fd, arg.offset);
    else
        finish_io(p, slot, -EBADF);
}

/* A WRITE of this pump's is heard of when it is done; for one of another's it is looked again. */
static void look_behind(struct uf_pump *p)
{
    static struct __kernel_timespec soon = {.tv_nsec = UF_NUDGE_NS};
    for (uint32_t slot = 0; p->behind && slot < p->slot_count; slot++)
        if (p->slots[slot].state == UF_SLOT_BEHIND)
            start_behind(p, slot);
    if (p->behind && p->crew && !p->nudging && uf_pump_room(p, 1)) {
        queue(p, UF_TAG_NUDGE, 0, IORING_OP_TIMEOUT, -1, &soon, 1, 0);
        p->nudging = true;
    }
}

static bool start_read(struct uf_pump *p, uint32_t slot, const struct fuse_in_header *in,
                       const void *body)
{
    struct fuse_read_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_to_read(&p->handles, in->nodeid, &arg);
    if (in->len != UF_IN_SIZE || !h || !uf_is_transfer(arg.size, p->max_transfer, arg.offset) ||
        !uf_pump_room(p, 2))
        return false;
    bool waits = h->flags & UF_HANDLE_CACHED && uf_is_written(&p->handles, in->nodeid);
    if (!waits && uf_is_better_now(h, arg.size)) {
        transfer_now(p, slot, h, arg.size, arg.offset);
        return true;
    }
    claim(p, slot, h, arg.size);
    if (waits) {
        p->slots[slot].state = UF_SLOT_BEHIND;
        p->behind++;
    } else {
        queue_read(p, slot, h->fd, arg.offset);
    }
    return true;
}

/* Whether a small write is made here though its file system has a disk: now and then it does wait,
 * for a page, the journal or the disk. So only as long as nobody else would have to, and not for
 * some time after one took long. */
static bool may_write_now(struct uf_pump *p, const struct uf_handle *h,
                          const struct fuse_write_in *arg)
{
    if (!uf_is_small_write(h, arg) || p->ring->transfers || !uf_is_local(&p->nodes, h->nodeid))
        return false;
    if (!p->cautious)
        return true;
    p->cautious--;
    return false;
}

static bool start_write(struct uf_pump *p, uint32_t slot, const struct fuse_in_header *in,
                        const void *body)
{
    struct fuse_write_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_to_write(&p->handles, in->nodeid, &arg);
    if (!h || !uf_is_transfer(arg.size, p->max_transfer, arg.offset) ||
        in->len != UF_IN_SIZE + arg.size || !uf_pump_room(p, 2))
        return false;
    bool plain = !(arg.write_flags & FUSE_WRITE_KILL_SUIDGID);
    if (plain && uf_is_better_now(h, arg.size)) {
        transfer_now(p, slot, h, arg.size, arg.offset);
        return true;
    }
    if (plain && may_write_now(p, h, &arg)) {
        uint64_t start = uf_clock_ns();
        transfer_now(p, slot, h, arg.size, arg.offset);
        if (uf_clock_ns() - start > UF_SLOW_WRITE_NS)
            p->cautious = UF_WRITE_CAUTION;
        return true;
    }
    struct write_reply *reply = (struct write_reply *)uf_slot_base(p, slot);
    const uint8_t *data = uf_slot_data(p, slot);
    const uint8_t *aside = uf_is_entry(p, slot) ? uf_entry_set_aside(p, slot, arg.size) : data;
    claim(p, slot, h, arg.size);
    fill_header(&reply->header, in->unique, sizeof(*reply), 0);
    reply->out = (struct fuse_write_out){.size = arg.size};
    struct io_uring_sqe *sqe = queue(p, UF_TAG_IO, slot, IORING_OP_WRITE, h->fd,
                                     aside ? aside : data, arg.size, arg.offset);
    use_fixed(p, sqe, slot);
    uf_as_asked(&p->handles, h, &arg, sqe);
    if (aside)
        queue_chain(p, slot, sqe, reply, sizeof(*reply));
    return true;
}

/* Not a chain: an fsync that fails does not break one (io_fsync() does not mark it as failed). */
static bool start_fsync(struct uf_pump *p, uint32_t slot, const struct fuse_in_header *in,
                        const void *body)
{
    struct fuse_fsync_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_find_handle(&p->handles, arg.fh, in->nodeid, UF_HANDLE_FAST);
    if (in->len != sizeof(*in) + sizeof(arg) || !h || !uf_pump_room(p, 1))
        return false;
    claim(p, slot, h, 0);
    struct io_uring_sqe *sqe = queue(p, UF_TAG_IO, slot, IORING_OP_FSYNC, h->fd, NULL, 0, 0);
    sqe->fsync_flags = arg.fsync_flags & FUSE_FSYNC_FDATASYNC ? IORING_FSYNC_DATASYNC : 0;
    return true;
}

static bool answer_flush(struct uf_pump *p, uint32_t slot, const struct fuse_in_header *in,
                         const void *body)
{
    struct fuse_flush_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_find_handle(&p->handles, arg.fh, in->nodeid, UF_HANDLE_FAST);
    bool locked = uf_has_locks(&p->handles);
    if (in->len != sizeof(*in) + sizeof(arg) || !h || locked)
        return false;
    p->fast_requests[FUSE_FLUSH]++;
    send_error(p, slot, uf_close_duplicate(h), UF_SLOT_REPLY);
    return true;
}

/* Reading a directory may wait for a disk, and there is no operation of io_uring's for it. So it
 * is done here only as long as nobody else would have to wait. */
static bool answer_readdir(struct uf_pump *p, uint32_t slot, const struct fuse_in_header *in,
                           const void *body)
{
    struct fuse_read_in arg;
    memcpy(&arg, body, sizeof(arg));
    const struct uf_handle *h = uf_find_handle(&p->handles, arg.fh, in->nodeid, UF_HANDLE_LIST);
    uint64_t raw_at = ((uint64_t)arg.size + 7) & ~7ull;
    if (in->len != UF_IN_SIZE || !h || p->ring->transfers || arg.size < UF_LEAST_LISTING ||
        raw_at + arg.size > p->max_transfer)
        return false;
    uint8_t *data = uf_slot_data(p, slot), *raw = data + raw_at;
    struct fuse_out_header *out = (struct fuse_out_header *)data - 1;
    ssize_t length = lseek(h->fd, (off_t)arg.offset, SEEK_SET) < 0
                         ? -1
                         : getdents64(h->fd, raw, arg.size);
    p->fast_requests[FUSE_READDIR]++;
    if (length < 0) {
        send_error(p, slot, -errno, UF_SLOT_REPLY);
        return true;
    }
    uint32_t used = uf_pack_dirents(data, arg.size, raw, (uint32_t)length);
    p->slots[slot].moved = used;
    fill_header(out, in->unique, (uint32_t)sizeof(*out) + used, 0);
    send_reply(p, slot, out, out->len, UF_SLOT_REPLY);
    return true;
}

/* What the table of inodes answers, as uf_ask_nodes() tells it. */
static int ask_nodes(struct uf_pump *p, unsigned how, const struct fuse_in_header *in,
                     const void *body, void *out)
{
    how |= p->ring->transfers ? 0 : UF_ALONE;
    return uf_ask_nodes(&p->nodes, &p->handles, how, in, body, out);
}

static void fill_answer(struct fuse_out_header *out, uint64_t unique, int answer)
{
    uint32_t body = answer > UF_DONE ? (uint32_t)answer : 0;
    fill_header(out, unique, (uint32_t)sizeof(*out) + body, answer < 0 ? answer : 0);
}

static bool answer_of_nodes(struct uf_pump *p, uint32_t slot, const struct fuse_in_header *in,
                            const void *body)
{
    struct fuse_out_header *out = (struct fuse_out_header *)uf_slot_base(p, slot);
    int length = ask_nodes(p, UF_TELLS, in, body, out + 1);
    if (!length)
        return false;
    p->fast_requests[in->opcode]++;
    if (length < 0) {
        send_error(p, slot, length, UF_SLOT_REPLY);
        return true;
    }
    fill_answer(out, in->unique, length);
    send_reply(p, slot, out, out->len, UF_SLOT_REPLY);
    return true;
}

/* True if the request is under way; false leaves it to Python, malformed ones too. What is checked
 * is read once, into a copy: the reply to a READ is written over the end of its own request. */
static bool start_request(struct uf_pump *p, uint32_t slot, uint32_t length)
{
    const uint8_t *message = uf_slot_data(p, slot) - UF_IN_SIZE;
    struct uf_slot *s = &p->slots[slot];
    struct fuse_in_header in;
    memcpy(&in, message, sizeof(in));
    bool headed = length >= sizeof(in);
    *s = (struct uf_slot){.arrived_ns = p->now_ns, .state = UF_SLOT_PYTHON};
    if (headed) {
        s->unique = in.unique;
        s->opcode = in.opcode < UF_OPCODES ? in.opcode : UF_OPCODES - 1;
    }
    p->requests[s->opcode]++;
    p->arrivals += p->arrived_ns != p->now_ns;
    p->arrived_ns = p->now_ns;
    uf_meter_begin(&p->meter, slot, message, length);
    if (headed && in.opcode == FUSE_WRITE && length >= UF_IN_SIZE)
        s->writes = uf_begin_write(&p->handles, in.nodeid, message + sizeof(in));
    if (!headed || in.len != length || !__atomic_load_n(&p->fast, __ATOMIC_RELAXED))
        return false;
    switch (in.opcode) {
    case FUSE_READ:
        return start_read(p, slot, &in, message + sizeof(in));
    case FUSE_WRITE:
        return start_write(p, slot, &in, message + sizeof(in));
    case FUSE_FSYNC:
        return start_fsync(p, slot, &in, message + sizeof(in));
    case FUSE_FLUSH:
        return answer_flush(p, slot, &in, message + sizeof(in));
    case FUSE_READDIR:
        return answer_readdir(p, slot, &in, message + sizeof(in));
    default:
        return answer_of_nodes(p, slot, &in, message + sizeof(in));
    }
}

/* For a request of another pump, whose thread has forwarded it: what this one's table of inodes
 * answers. How long that is, at the start of the slot; 0 leaves it to Python. */
uint32_t uf_pump_answer(struct uf_pump *p, const struct uf_pump *forwarder, uint32_t slot,
                        uint32_t length)
{
    const uint8_t *message = uf_slot_data(forwarder, slot) - UF_IN_SIZE;
    struct fuse_out_header *out = (struct fuse_out_header *)uf_slot_base(forwarder, slot);
    struct fuse_in_header in;
    memcpy(&in, message, sizeof(in));
    if (length < sizeof(in) || in.len != length || !p->fast)
        return 0;
    int body = ask_nodes(p, 0, &in, message + sizeof(in), out + 1);
    if (!body)
        return 0;
    p->fast_requests[in.opcode]++;
    fill_answer(out, in.unique, body);
    return out->len;
}

/* -- completions ------------------------------------------------------------------------------ */

/* The kernel has taken a reply, or has given up the request (ENOENT) or the device. Any other
 * error is a reply it could not read, and whoever asked still waits for one. */
static void finish_reply(struct uf_pump *p, uint32_t slot, int res)
{
    bool given_up = res == -ENOENT || res == -ENODEV || res == -ECONNABORTED || res == -EPERM;
    if (res >= 0 || given_up || p->slots[slot].state == UF_SLOT_LAST_REPLY) {
        free_slot(p, slot);
        return;
    }
    p->refused++;
    send_error(p, slot, -EIO, UF_SLOT_LAST_REPLY);
}

/* A transfer that came without its reply: it failed or came out short, and broke its chain. That of
 * an entry tells success as well, as its reply does not. */
static void finish_transfer(struct uf_pump *p, uint32_t slot, int res)
{
    struct uf_slot *s = &p->slots[slot];
    if (s->state == UF_SLOT_IO && s->chained && res == (int)s->size) {
        s->moved = s->size;
        unclaim(p, slot);
        uf_entry_chained(p, slot);
    } else if (s->state == UF_SLOT_IO)
        finish_io(p, slot, res);
    else if (p->slots[slot].state == UF_SLOT_LOST)
        free_slot(p, slot);
}

/* The reply of a chain. If the chain broke, the transfer's completion has the answer; kernels do
 * not even tell of the reply then, as the transfer was to complete in silence (since 5.17). */
static void finish_chain(struct uf_pump *p, uint32_t slot, int res)
{
    struct uf_slot *s = &p->slots[slot];
    if (res == -ECANCELED || s->state != UF_SLOT_IO)
        return;
    if (res >= 0)
        s->moved = s->size;
    unclaim(p, slot);
    finish_reply(p, slot, res);
}

/* The window is used up: the kernel has read as many requests as it may at a time.
 *
 * Where they wait for a disk that is well so. It would go on reading for as long as requests come
 * in, and only then could the first be sent to the disk; a client, the server and the disk would
 * each wait for the others to be done with all there is. Few at a time, they work side by side. */
static void widen(struct uf_pump *p)
{
    if (!p->spares)
        p->starved++;
    else if (p->ring->transfers)
        p->window = UF_WINDOW;
    else if (p->window < p->first_entry)
        p->window *= 2;
}

/* The device read has ended. Short of memory or slots it is started again, by settle(). */
static bool end_device(struct uf_pump *p, int res)
{
    switch (res) {
    case -ENOBUFS:
        widen(p);
        return false;
    case -ECANCELED: /* by whoever stopped it, or sent it off duty; it may be on duty again */
    case -ENOENT:    /* the request was interrupted before it was read */
    case -EINTR:
    case -EAGAIN:
        return false;
    default:
        if (p->stopping)
            return false;
        p->stopping = true;
        return true;
    }
}

/* The device read: a request, or its end, or (when completions overflow) both. */
static bool take_device(struct uf_pump *p, const struct io_uring_cqe *cqe, uint64_t *data,
                        int32_t *res)
{
    uint32_t slot = UF_NO_SLOT;
    if (!(cqe->flags & IORING_CQE_F_MORE))
        p->armed = false;
    if (cqe->flags & IORING_CQE_F_BUFFER) {
        slot = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
        p->offered--;
        uf_watch_window(p);
        if (cqe->res <= 0)
            uf_put_slot(p, slot);
        else if (start_request(p, slot, (uint32_t)cqe->res) ||
                 uf_put_aside(p, slot, (uint32_t)cqe->res))
            return false;
    }
    if (cqe->res <= 0) {
        if (!end_device(p, cqe->res))
            return false;
        slot = UF_NO_SLOT;
    }
    *data = (uint64_t)UF_TAG_REQUEST << UF_TAG_SHIFT | slot;
    *res = cqe->res;
    return true;
}

/* A command of FUSE over io_uring: a request, or the end of its entry. */
static bool take_entry(struct uf_pump *p, uint32_t slot, int entry_res, uint64_t *data,
                       int32_t *res)
{
    uint32_t length;
    bool refused;
    if (!uf_entry_take(p, slot, entry_res, &length, &refused)) {
        *data = (uint64_t)UF_TAG_REFUSED << UF_TAG_SHIFT;
        *res = entry_res;
        return refused;
    }
    if (start_request(p, slot, length))
        return false;
    *data = (uint64_t)UF_TAG_REQUEST << UF_TAG_SHIFT | slot;
    *res = (int32_t)length;
    return true;
}

bool uf_pump_complete(struct uf_pump *p, const struct io_uring_cqe *cqe, uint64_t *data,
                      int32_t *res)
{
    uint32_t slot = (uint32_t)cqe->user_data;
    if ((cqe->user_data >> 32 & UF_SERIAL_MASK) != p->serial)
        return false;
    switch (cqe->user_data >> UF_TAG_SHIFT) {
    case UF_TAG_DEVICE:
        return take_device(p, cqe, data, res);
    case UF_TAG_IO:
        finish_transfer(p, slot, cqe->res);
        return false;
    case UF_TAG_CHAINED:
        finish_chain(p, slot, cqe->res);
        return false;
    case UF_TAG_REPLY:
        p->ring->at_once--;
        finish_reply(p, slot, cqe->res);
        return false;
    case UF_TAG_NUDGE:
        p->nudging = false;
        return false;
    case UF_TAG_ENTRY:
        return take_entry(p, slot, cqe->res, data, res);
    default:
        return false;
    }
}

static int arm(struct uf_pump *p)
{
    if (!uf_pump_room(p, 1))
        return -EBUSY;
    struct io_uring_sqe *sqe =
        queue_on_device(p, UF_TAG_DEVICE, 0, UF_OP_READ_MULTISHOT, NULL, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = UF_BUFFER_GROUP;
    p->armed = true;
    return 0;
}

int uf_pump_settle(struct uf_pump *p)
{
    look_behind(p);
    uf_offer_slots(p);
    uf_entries_settle(p);
    if (!p->armed && !p->stopping && !p->off_duty && p->offered)
        return arm(p);
    return 0;
}

/* Where it has no memory for a request the kernel takes fewer entries than there are, and starts
 * what it has of a chain. The reply left behind would go out with the next submission, whether the
 * transfer is done or not; it becomes EIO. Nothing will tell that such a transfer succeeded, so
 * its slot is not used again. */
void uf_pump_mend(struct uf_pump *p)
{
    struct io_uring_sq *sq = &p->ring->uring.sq;
    unsigned wide = p->ring->setup_flags & IORING_SETUP_SQE128 ? 1 : 0;
    struct io_uring_sqe *sqe = &sq->sqes[(*sq->khead & *sq->kring_mask) << wide];
    if (!io_uring_sq_ready(&p->ring->uring))
        return;
    uint32_t slot = (uint32_t)sqe->user_data;
    unsigned tag = sqe->user_data >> UF_TAG_SHIFT;
    if (tag == UF_TAG_ENTRY && p->slots[slot].chained)
        uf_entry_unchain(p, slot, sqe);
    if (tag != UF_TAG_CHAINED)
        return;
    struct fuse_out_header *out = (struct fuse_out_header *)uf_slot_base(p, slot);
    fill_header(out, p->slots[slot].unique, sizeof(*out), -EIO);
    sqe->addr = (uint64_t)(uintptr_t)out;
    sqe->len = sizeof(*out);
    io_uring_sqe_set_data64(sqe, uf_pump_data(p, UF_TAG_IGNORE, 0));
    unclaim(p, slot);
    p->slots[slot].state = UF_SLOT_LOST;
}

void uf_pump_tick(struct uf_pump *p)
{
    p->now_ns = uf_clock_ns();
    if (p->crew && p->now_ns - p->looked_ns > UF_CREW_LOOK_NS)
        uf_crew_look(p);
}

/* Listen no more until called: others of the crew do. */
void uf_pump_leave(struct uf_pump *p)
{
    p->off_duty = true;
    if (p->armed && uf_pump_room(p, 1))
        queue_cancel(p, UF_TAG_DEVICE, 0);
}

/* -- for Python ------------------------------------------------------------------------------- */

static int set_up(struct uf_pump *p)
{
    uint32_t size = 1;
    while (size < p->first_entry)
        size *= 2;
    p->free_ring_size = size;
    p->serial = p->ring->pumps++ & UF_SERIAL_MASK;
    p->slots = calloc(p->slot_count, sizeof(*p->slots));
    p->spare = calloc(p->first_entry, sizeof(*p->spare));
    p->window = p->least_offered = UF_WINDOW;
    p->free_ring = mmap(NULL, size * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE,
                        MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    if (!p->slots || !p->spare || p->free_ring == MAP_FAILED)
        return -ENOMEM;
    io_uring_buf_ring_init(p->free_ring);
    struct io_uring_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)p->free_ring,
                                   .ring_entries = size,
                                   .bgid = UF_BUFFER_GROUP};
    int rc = io_uring_register_buf_ring(&p->ring->uring, &reg, 0);
    if (rc < 0)
        return rc;
    for (uint32_t slot = p->first_entry; slot-- > 0;)
        uf_put_slot(p, slot);
    p->ring->pump = p;
    return 0;
}

int uf_pump_open(struct uf_pump *p)
{
    int rc = set_up(p);
    if (rc < 0)
        uf_pump_close(p);
    return rc;
}

int uf_pump_start(struct uf_pump *p)
{
    p->stopping = false;
    uf_pump_tick(p);
    return uf_pump_settle(p);
}

/* Take no more requests: the device read ends, which `armed` tells. May be called again. */
int uf_pump_stop(struct uf_pump *p)
{
    p->stopping = true;
    if (!p->armed)
        return 0;
    if (!uf_pump_room(p, 1))
        return -EBUSY;
    queue_cancel(p, UF_TAG_DEVICE, 0);
    return 0;
}

/* What a reply of Python's says. */
static void note_reply(struct uf_slot *s, const uint8_t *reply, uint32_t length)
{
    struct write_reply r = {0};
    memcpy(&r, reply, length < sizeof(r) ? length : sizeof(r));
    s->error = r.header.error;
    s->moved = s->opcode == FUSE_WRITE ? r.out.size : length - (uint32_t)sizeof(r.header);
}

/* Answer with `length` bytes that lie `offset` bytes into the slot. */
int uf_pump_reply(struct uf_pump *p, uint32_t slot, uint32_t offset, uint32_t length)
{
    if (slot >= p->slot_count || p->slots[slot].state != UF_SLOT_PYTHON ||
        length > p->slot_size || offset > p->slot_size - length)
        return -EINVAL;
    if (length >= sizeof(struct fuse_out_header))
        note_reply(&p->slots[slot], uf_slot_base(p, slot) + offset, length);
    uf_end_write(&p->slots[slot].writes);
    send_reply(p, slot, uf_slot_base(p, slot) + offset, length, UF_SLOT_REPLY);
    /* Python comes back here only by way of its event loop. Where little goes on, the client need
     * not wait for that; else one submission is for all. */
    if (p->ring->last_batch <= UF_FEW)
        uf_flush(p->ring);
    return 0;
}

/* For requests that have no answer (FORGET). */
int uf_pump_drop(struct uf_pump *p, uint32_t slot)
{
    if (slot >= p->slot_count || p->slots[slot].state != UF_SLOT_PYTHON)
        return -EINVAL;
    uf_end_write(&p->slots[slot].writes);
    p->slots[slot].answered_ns = uf_clock_ns();
    if (uf_is_entry(p, slot))
        send_error(p, slot, -EIO, UF_SLOT_REPLY); /* FORGET comes by the device */
    else
        free_slot(p, slot);
    return 0;
}

/* Answer for Python, which cannot be told of it. */
void uf_pump_refuse(struct uf_pump *p, uint32_t slot)
{
    if (slot >= p->slot_count || p->slots[slot].state != UF_SLOT_PYTHON)
        return;
    uf_end_write(&p->slots[slot].writes);
    send_error(p, slot, -EIO, UF_SLOT_REPLY);
}

/* Cancel the transfer of a request, of all if `unique` is 0, and say how many there are. Each
 * then answers EINTR, or its result. */
int uf_pump_interrupt(struct uf_pump *p, uint64_t unique)
{
    int found = 0;
    for (uint32_t slot = 0; slot < p->slot_count; slot++) {
        enum uf_slot_state state = p->slots[slot].state;
        if ((state != UF_SLOT_IO && state != UF_SLOT_BEHIND) ||
            (unique && p->slots[slot].unique != unique))
            continue;
        found++;
        if (state == UF_SLOT_BEHIND)
            continue;
        if (!uf_pump_room(p, 1))
            return -EBUSY;
        queue_cancel(p, UF_TAG_IO, slot);
    }
    return found;
}

/* What is under way, here and in Python, as far as there is room to tell: how many that are. Where
 * the pump is a lane's it works meanwhile, and what is told of a slot may be of two requests: it is
 * only shown, so no work is made of it, and the sanitizer need not know. */
__attribute__((no_sanitize_thread)) uint32_t uf_pump_waiting(const struct uf_pump *p,
                                                             uint32_t *opcode, uint64_t *since_ns,
                                                             uint32_t room)
{
    uint32_t n = 0;
    for (uint32_t slot = 0; slot < p->slot_count && n < room; slot++) {
        enum uf_slot_state state = p->slots[slot].state;
        if (state < UF_SLOT_PYTHON || state > UF_SLOT_LAST_REPLY)
            continue;
        opcode[n] = p->slots[slot].opcode;
        since_ns[n++] = p->slots[slot].arrived_ns;
    }
    return n;
}

/* What is under way is forgotten: its memory must stay for as long as the kernel may use it. */
void uf_pump_close(struct uf_pump *p)
{
    for (uint32_t slot = 0; p->slots && slot < p->slot_count; slot++)
        unclaim(p, slot);
    uf_entries_close(p);
    if (p->ring->pump == p) {
        uf_pump_stop(p);
        uf_flush(p->ring);
        p->ring->pump = NULL;
        p->ring->at_once = 0;
        io_uring_unregister_buf_ring(&p->ring->uring, UF_BUFFER_GROUP);
    }
    if (p->free_ring && p->free_ring != MAP_FAILED)
        munmap(p->free_ring, p->free_ring_size * sizeof(struct io_uring_buf));
    free(p->slots);
    free(p->spare);
    free(p->iovecs);
    uf_nodes_clear(&p->nodes);
    p->free_ring = NULL;
    p->iovecs = NULL;
    p->slots = NULL;
    p->spare = NULL;
    p->slot_count = p->first_entry = p->spares = p->offered = 0;
    p->entries = p->held = p->uncommitted = p->behind = p->late_count = 0;
    p->armed = false;
}
