/* FUSE over io_uring (Linux 6.14): a request comes as the completion of a command on the device,
 * and the command that carries its reply is the one that fetches the next.
 *
 * The kernel has a queue for each possible CPU, and a request goes to that of the CPU it is made
 * on. Each queue needs entries: memory that a request is put into, and its reply taken from. Only
 * when all have one does the kernel begin to use them; until then, and for FORGET and INTERRUPT
 * always, it uses the device.
 *
 * The upper slots of the pump are such entries. The kernel copies a request in three parts, header,
 * first argument and the rest. The rest goes where a slot has its data, which is where that of a
 * WRITE is wanted; the others are put before it, so that a request looks as if it had been read:
 *
 *     base               base+1024           base+4016          base+4096
 *     | reply from Python | struct req_header | request headers | data, or the other arguments |
 *
 * A transfer and the command that answers are a chain, as on the device. But here the transfer
 * tells that it is done: the command completes when there is another request. The reply to a WRITE
 * has to lie where its data does, which therefore is set aside, if that is not too much of it. */
#include "entry.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>

#define UF_OP_URING_CMD 46
#define UF_HEAD_AT 1024u
#define UF_ENTRY_IOVECS 2u
#define UF_ASIDE (16u << 10) /* bytes that are copied sooner than another turn is made */
/* IORING_ASYNC_CANCEL_ALL, _FD and _FD_FIXED (6.0). */
#define UF_CANCEL_ALL_OF_FILE (1u | 2u | 8u)

/* linux/fuse.h of Linux 6.14; older headers have nothing of it. */
enum { UF_CMD_REGISTER = 1, UF_CMD_COMMIT_AND_FETCH = 2 };

struct uf_req_header {
    uint8_t in_out[128];
    uint8_t op_in[128];
    uint64_t flags;
    uint64_t commit_id;
    uint32_t payload_size;
    uint32_t padding;
    uint64_t reserved;
};
_Static_assert(sizeof(struct uf_req_header) == 288, "struct fuse_uring_req_header");

struct uf_cmd {
    uint64_t flags;
    uint64_t commit_id;
    uint16_t queue;
    uint8_t padding[6];
};
_Static_assert(sizeof(struct uf_cmd) == 24, "struct fuse_uring_cmd_req");

static struct uf_req_header *head_of(const struct uf_pump *p, uint32_t slot)
{
    return (struct uf_req_header *)(uf_slot_base(p, slot) + UF_HEAD_AT);
}

static void put_command(struct uf_pump *p, uint32_t slot, uint32_t command, uint64_t commit_id)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring->uring);
    io_uring_prep_rw(UF_OP_URING_CMD, sqe, (int)p->device_file, NULL, 0, 0);
    memset(sqe->cmd, 0, 80);
    struct uf_cmd cmd = {.commit_id = commit_id,
                         .queue = (uint16_t)((slot - p->first_entry) % p->queues)};
    memcpy(sqe->cmd, &cmd, sizeof(cmd));
    sqe->cmd_op = command;
    sqe->flags |= IOSQE_FIXED_FILE;
    if (command == UF_CMD_REGISTER) {
        sqe->addr = (uint64_t)(uintptr_t)&p->iovecs[slot * UF_ENTRY_IOVECS];
        sqe->len = UF_ENTRY_IOVECS;
    }
    io_uring_sqe_set_data64(sqe, uf_pump_data(p, UF_TAG_ENTRY, slot));
}

/* The kernel may fill it with the next request. */
static void hand_over(struct uf_pump *p, uint32_t slot)
{
    p->slots[slot].state = UF_SLOT_FREE;
    p->held++;
}

static bool queue_command(struct uf_pump *p, uint32_t slot, uint32_t command, uint64_t commit_id)
{
    if (!uf_pump_room(p, 1))
        return false;
    put_command(p, slot, command, commit_id);
    hand_over(p, slot);
    return true;
}

static void put_reply(struct uf_pump *p, uint32_t slot, const void *reply, uint32_t length)
{
    struct uf_req_header *head = head_of(p, slot);
    struct fuse_out_header out;
    memcpy(&out, reply, sizeof(out));
    uint32_t size = length - (uint32_t)sizeof(out);
    if (size > p->max_transfer) {
        out.error = -EIO;
        size = 0;
    }
    const uint8_t *body = (const uint8_t *)reply + sizeof(out);
    if (size && body != uf_slot_data(p, slot))
        memmove(uf_slot_data(p, slot), body, size);
    memcpy(head->in_out, &out, sizeof(out));
    head->payload_size = size;
}

void uf_entry_chain(struct uf_pump *p, uint32_t slot, const void *reply, uint32_t length)
{
    put_reply(p, slot, reply, length);
    put_command(p, slot, UF_CMD_COMMIT_AND_FETCH, p->slots[slot].unique);
    p->slots[slot].chained = true;
}

void uf_entry_chained(struct uf_pump *p, uint32_t slot)
{
    p->slots[slot].chained = false;
    uf_pump_count(p, slot);
    hand_over(p, slot);
}

/* What the kernel will find instead does nothing, as there is nothing of that name. */
void uf_entry_unchain(struct uf_pump *p, uint32_t slot, struct io_uring_sqe *sqe)
{
    io_uring_prep_rw(IORING_OP_ASYNC_CANCEL, sqe, -1, NULL, 0, 0);
    sqe->addr = uf_pump_data(p, UF_TAG_IGNORE, slot);
    io_uring_sqe_set_data64(sqe, uf_pump_data(p, UF_TAG_IGNORE, 0));
    p->slots[slot].chained = false;
}

const uint8_t *uf_entry_set_aside(struct uf_pump *p, uint32_t slot, uint32_t size)
{
    uint8_t *data = uf_slot_data(p, slot);
    uint32_t at = (size + UF_PAGE - 1) & ~(UF_PAGE - 1);
    if (size > UF_ASIDE || at + size > p->max_transfer)
        return NULL;
    return memcpy(data + at, data, size);
}

void uf_entry_commit(struct uf_pump *p, uint32_t slot, const void *reply, uint32_t length)
{
    struct uf_slot *s = &p->slots[slot];
    put_reply(p, slot, reply, length);
    uf_pump_count(p, slot);
    if (!queue_command(p, slot, UF_CMD_COMMIT_AND_FETCH, s->unique)) {
        s->state = UF_SLOT_UNCOMMITTED;
        p->uncommitted++;
    }
}

void uf_entries_settle(struct uf_pump *p)
{
    for (uint32_t slot = p->first_entry; p->uncommitted && slot < p->slot_count; slot++) {
        if (p->slots[slot].state != UF_SLOT_UNCOMMITTED)
            continue;
        if (!queue_command(p, slot, UF_CMD_COMMIT_AND_FETCH, p->slots[slot].unique))
            return;
        p->uncommitted--;
    }
}

/* How many bytes the request has in all; 0 if its parts do not fit together. */
static uint32_t assemble(struct uf_pump *p, uint32_t slot)
{
    struct uf_req_header *head = head_of(p, slot);
    uint8_t *data = uf_slot_data(p, slot), *message = data - UF_IN_SIZE;
    struct fuse_in_header in;
    memcpy(&in, head->in_out, sizeof(in));
    uint32_t rest = head->payload_size, fixed = (uint32_t)sizeof(in);
    if (in.len < fixed + rest || rest > p->max_transfer)
        return 0;
    uint32_t first = in.len - fixed - rest;
    if (first > sizeof(head->op_in) || in.len > UF_IN_SIZE + p->max_transfer)
        return 0;
    if (rest && message + fixed + first != data)
        memmove(message + fixed + first, data, rest);
    memcpy(message, &in, fixed);
    memcpy(message + fixed, head->op_in, first);
    return in.len;
}

static bool is_the_end(int res)
{
    return res == -ENOTCONN || res == -ECONNABORTED || res == -ENODEV || res == -ECANCELED;
}

bool uf_entry_take(struct uf_pump *p, uint32_t slot, int res, uint32_t *length, bool *refused)
{
    *refused = false;
    if (res == -ECANCELED && p->slots[slot].chained) {
        p->slots[slot].chained = false; /* the transfer has an answer of its own */
        return false;
    }
    p->held--;
    *refused = !is_the_end(res);
    if (res == -EAGAIN && queue_command(p, slot, UF_CMD_REGISTER, 0)) {
        *refused = false; /* the reply to INIT has not been read yet */
        return false;
    }
    if (res < 0) {
        p->entries--;
        p->slots[slot].state = UF_SLOT_GONE;
        return false;
    }
    p->over_io_uring = true;
    *length = assemble(p, slot);
    struct fuse_in_header in;
    memcpy(&in, head_of(p, slot)->in_out, sizeof(in));
    p->slots[slot].unique = in.unique;
    return true;
}

/* From the reply to INIT on, in which it was agreed to. The ring must have entries of 128 bytes.
 * An entry that the kernel does not want comes back as UF_TAG_REFUSED. */
int uf_pump_register(struct uf_pump *p, uint32_t queues)
{
    uint32_t count = p->slot_count - p->first_entry;
    if (!(p->ring->setup_flags & IORING_SETUP_SQE128) || !queues || count < queues)
        return -EINVAL;
    p->iovecs = calloc(p->slot_count * UF_ENTRY_IOVECS, sizeof(*p->iovecs));
    if (!p->iovecs)
        return -ENOMEM;
    p->queues = queues;
    for (uint32_t slot = p->first_entry; slot < p->slot_count; slot++) {
        struct iovec *v = &p->iovecs[slot * UF_ENTRY_IOVECS];
        v[0] = (struct iovec){head_of(p, slot), sizeof(struct uf_req_header)};
        v[1] = (struct iovec){uf_slot_data(p, slot), p->max_transfer};
        if (!queue_command(p, slot, UF_CMD_REGISTER, 0))
            return -EBUSY;
        p->entries++;
    }
    return 0;
}

/* As long as the kernel has a command it has the device open, and the mount does not end. */
void uf_entries_close(struct uf_pump *p)
{
    if (p->held && p->ring->pump == p && uf_pump_room(p, 1)) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring->uring);
        io_uring_prep_rw(IORING_OP_ASYNC_CANCEL, sqe, (int)p->device_file, NULL, 0, 0);
        sqe->cancel_flags = UF_CANCEL_ALL_OF_FILE;
        io_uring_sqe_set_data64(sqe, uf_pump_data(p, UF_TAG_IGNORE, 0));
    }
}
