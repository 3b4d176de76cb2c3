/* The pump: FUSE requests that only move bytes, from the device to the backing file and back,
 * without Python. See pump.c. */
#ifndef URINGFS_PUMP_H
#define URINGFS_PUMP_H

#include "handle.h"
#include "meter.h"
#include "nodes.h"

/* Completions that reach Python: a request it has to answer (user_data: slot, res: bytes), or
 * UF_NO_SLOT and the errno that ended the device. */
#define UF_TAG_REQUEST 2u
#define UF_NO_SLOT 0xffffffffu

#define UF_TAG_DEVICE 0x81u
#define UF_TAG_IO 0x82u
#define UF_TAG_REPLY 0x83u   /* by itself */
#define UF_TAG_CHAINED 0x84u /* behind its transfer */
#define UF_TAG_NUDGE 0x88u

#define UF_PAGE 4096u
#define UF_IN_SIZE 80u /* fuse_in_header + fuse_write_in: what precedes the data of a WRITE */
#define UF_WINDOW 4u /* slots that are offered to the kernel at the least */
#define UF_WATCH 1024u
#define UF_LATE 16u          /* requests that are put aside at the most */
#define UF_LATE_NS 1000000 /* and for how long */

enum uf_slot_state {
    UF_SLOT_FREE,
    UF_SLOT_PYTHON,     /* Python is to answer or drop it */
    UF_SLOT_BEHIND,     /* a READ that waits for a WRITE */
    UF_SLOT_IO,         /* its transfer is under way, with or without a reply behind it */
    UF_SLOT_REPLY,      /* its reply is */
    UF_SLOT_LAST_REPLY, /* its reply was refused; now it gets EIO, or nothing */
    UF_SLOT_LOST,       /* answered, but the kernel may still use the memory: uf_pump_mend() */
    UF_SLOT_UNCOMMITTED, /* an entry whose reply there was no room for */
    UF_SLOT_GONE,       /* an entry that is none any more */
};

struct uf_slot {
    uint64_t unique;
    uint64_t arrived_ns;
    uint64_t answered_ns; /* 0 as long as it is not, or while the kernel does so in a chain */
    uint32_t *writes; /* where a WRITE is counted that is not done */
    uint32_t handle; /* index into the handle table while the pump has a request on it */
    uint32_t opcode;
    uint32_t size;  /* bytes asked for */
    uint32_t moved; /* bytes that the reply brings, or says were taken */
    int32_t error;  /* of the reply: 0 or -errno */
    enum uf_slot_state state;
    bool chained; /* an entry whose reply is behind its transfer, unless that breaks the chain */
};

/* A request that is put aside, see late.c. */
struct uf_late {
    uint32_t slot;
    uint32_t length;
    uint64_t closes; /* a file or directory of that node id; 0: it forgets */
};

struct uf_pump {
    struct uf_ring *ring;
    int device_fd;
    uint32_t device_file; /* the same among the ring's registered files */
    uint8_t *memory; /* slot_count slots of slot_size bytes, page-aligned */
    uint32_t slot_count;
    uint32_t slot_size;
    uint32_t max_transfer;   /* bytes of data that fit a slot */
    uint32_t fixed_bytes;    /* how much of each slot, from its start, is registered; 0: nothing */
    uint32_t fixed_base;     /* index of slot 0 among the registered buffers */
    bool apart;              /* its thread is a lane's, and not the one that fills the table */
    bool fast;               /* false: Python answers everything (--no-async-io) */
    struct uf_handles handles;
    struct uf_nodes nodes;
    uint32_t cautious; /* writes to come that are not waited for */

    /* FUSE over io_uring, see entry.c. Without it first_entry is slot_count. */
    uint32_t first_entry;
    uint32_t queues;
    uint32_t entries;
    uint32_t held;        /* entries that the kernel may fill */
    uint32_t uncommitted;
    struct iovec *iovecs;
    bool over_io_uring;   /* a request has come that way */

    struct uf_slot *slots;
    uint32_t serial; /* of this pump among those its ring has had */
    struct io_uring_buf_ring *free_ring;
    uint32_t free_ring_size;
    uint32_t offered;       /* free slots that the kernel may fill */
    uint32_t window;        /* how many those may be */
    uint32_t least_offered; /* there were, since watched was 0 */
    uint32_t watched;       /* requests */
    uint16_t *spare;        /* the other free slots, a stack */
    uint32_t spares;
    bool armed;
    bool stopping;
    uint64_t now_ns;

    /* Several pumps on one device, see crew.c. NULL: it listens always. */
    struct uf_crew *crew;
    uint32_t number;  /* among them; 0 is the event loop's */
    bool off_duty;    /* it does not listen until it is called */
    uint32_t quiet;   /* looks in a row that found it with little to do */
    uint64_t looked_ns;
    uint64_t looked_busy_ns;
    uint64_t looked_moved;
    uint64_t looked_arrivals;
    uint32_t behind; /* slots in UF_SLOT_BEHIND */
    bool nudging;    /* there will be a completion for their sake */
    uint64_t arrivals; /* batches of completions that brought requests */
    uint64_t arrived_ns; /* of the last one */

    bool defers; /* what nobody waits for is put aside */
    uint32_t late_count;
    bool late_first; /* one is asked for that has to come behind them */
    uint64_t late_since_ns;
    struct uf_late late[UF_LATE];

    uint64_t requests[UF_OPCODES];
    uint64_t fast_requests[UF_OPCODES];
    struct uf_meter meter;
    uint64_t starved; /* times the device had to wait for a free slot */
    uint64_t refused; /* replies that the kernel could not read; EIO went instead */
};

static inline uint8_t *uf_slot_base(const struct uf_pump *p, uint32_t slot)
{
    return p->memory + (size_t)slot * p->slot_size;
}

static inline uint8_t *uf_slot_data(const struct uf_pump *p, uint32_t slot)
{
    return uf_slot_base(p, slot) + UF_PAGE;
}

/* Room for a chain of n: a chain may not be cut by a submission in its middle. */
static inline bool uf_pump_room(struct uf_pump *p, unsigned n)
{
    if (io_uring_sq_space_left(&p->ring->uring) >= n)
        return true;
    uf_flush(p->ring);
    return io_uring_sq_space_left(&p->ring->uring) >= n;
}

/* The serial keeps completions of a pump that was closed from the next one on the same ring. */
static inline uint64_t uf_pump_data(const struct uf_pump *p, unsigned tag, uint32_t slot)
{
    return (uint64_t)tag << UF_TAG_SHIFT | (uint64_t)p->serial << 32 | slot;
}

/* Note how long a request took that is done with. */
static inline void uf_pump_count(struct uf_pump *p, uint32_t slot)
{
    const struct uf_slot *s = &p->slots[slot];
    uf_meter_end(&p->meter, slot, s->opcode, s->arrived_ns,
                 s->answered_ns ? s->answered_ns : p->now_ns, s->error, s->moved);
}

int uf_pump_open(struct uf_pump *p);
void uf_pump_close(struct uf_pump *p);
void uf_pump_leave(struct uf_pump *p);
int uf_pump_start(struct uf_pump *p);
int uf_pump_stop(struct uf_pump *p);
int uf_pump_reply(struct uf_pump *p, uint32_t slot, uint32_t offset, uint32_t length);
int uf_pump_drop(struct uf_pump *p, uint32_t slot);
void uf_pump_refuse(struct uf_pump *p, uint32_t slot);
uint32_t uf_pump_answer(struct uf_pump *p, const struct uf_pump *forwarder, uint32_t slot,
                        uint32_t length);
int uf_pump_interrupt(struct uf_pump *p, uint64_t unique);
uint32_t uf_pump_waiting(const struct uf_pump *p, uint32_t *opcode, uint64_t *since_ns,
                         uint32_t room);

/* For uf_turn: take a completion; true if it now concerns Python, as rewritten in *data, *res. */
bool uf_pump_complete(struct uf_pump *p, const struct io_uring_cqe *cqe, uint64_t *data,
                      int32_t *res);
/* For uf_turn, before a batch: what time it is, for all of the batch. */
void uf_pump_tick(struct uf_pump *p);
/* Before a submission: give slots back, listen on. */
int uf_pump_settle(struct uf_pump *p);
/* After a submission, in case it took less than all: see to it that no chain was cut. */
void uf_pump_mend(struct uf_pump *p);

#endif
