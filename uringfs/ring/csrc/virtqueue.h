/* Requests of a guest, from its virtqueues to the backing file and back. See virtqueue.c. */
#ifndef URINGFS_VIRTQUEUE_H
#define URINGFS_VIRTQUEUE_H

#include "handle.h"
#include "meter.h"
#include "ring.h"

/* A completion that reaches Python: there are requests to take, or queues that broke. */
#define UF_TAG_GUEST 3u

#define UF_TAG_KICK 0x85u
#define UF_TAG_GUEST_IO 0x86u

#define UF_QUEUES 64u
#define UF_PIECES 1032u     /* of memory in a chain: IOV_MAX, and what its headers may take */
#define UF_QUEUE_SIZE 1024u /* entries of a queue, at the most */
#define UF_REGIONS 509u
#define UF_TAKE 128u /* requests taken from one queue before the others have their turn */
#define UF_TAKE_BYTES (512u << 10) /* the same for those that were moved without the ring */
#define UF_EARLY 4u /* replies that the driver is to hear of before the turn is over */
#define UF_DIRTY_PAGE 4096u

struct uf_region {
    uint64_t guest;
    uint64_t size;
    uint8_t *at;
};

struct uf_vring {
    bool taking;
    bool started;
    bool armed;  /* the kernel polls its kicks */
    bool waking; /* the driver has been told to kick for the next entry */
    bool event_idx;
    bool indirect;
    uint32_t size;
    const uint8_t *table;
    const uint16_t *avail;
    uint8_t *used;
    uint32_t polls; /* of its kicks, that there have been */
    int kick_fd;
    int call_fd;          /* -1: nobody wants to hear */
    uint64_t log_used;    /* guest address of the used ring where that is logged; 0: it is not */
    uint8_t *inflight;    /* NULL: not tracked */
    uint64_t counter;     /* of what was tracked */
    uint16_t next;        /* entry of the available ring */
    uint16_t used_next;
    uint16_t told;        /* the driver has heard of what is before */
    uint32_t under_way;
    uint32_t resumed;     /* of the heads below, those to take up again */
    uint16_t resume[UF_QUEUE_SIZE];
};

enum uf_chain_state {
    UF_CHAIN_FREE,
    UF_CHAIN_PYTHON,
    UF_CHAIN_BEHIND, /* a READ that waits for a WRITE: order.h */
    UF_CHAIN_IO,
};

struct uf_chain {
    uint64_t unique;
    uint64_t arrived_ns;
    uint32_t opcode;
    uint32_t handle; /* row of the handle table while a transfer is under way */
    uint32_t readable; /* pieces at the start of `piece`; the others are writable */
    uint32_t pieces;
    uint32_t read_bytes;
    uint32_t write_bytes;
    uint16_t head;
    uint16_t queue;
    enum uf_chain_state state;
    uint32_t *writes;         /* where a WRITE is counted that is not done */
    uint64_t nodeid;          /* of one that waits */
    struct fuse_read_in read; /* and what it asks for */
    struct iovec piece[UF_PIECES];
    struct iovec data[UF_PIECES];
};

struct uf_guest {
    struct uf_ring *ring;
    struct uf_guest *next;
    uint32_t serial;
    struct uf_region *regions; /* sorted, region_count of them */
    uint32_t region_count;
    struct uf_vring queue[UF_QUEUES];
    uint32_t queues; /* up to the last that was ever started */
    struct uf_chain *chains;
    uint32_t chain_count;
    uint32_t *spare; /* free chains, a stack */
    uint32_t spares;
    uint32_t *python; /* chains that Python is to be given, python_count of them */
    uint32_t python_count;
    uint32_t transfers;
    uint32_t behind; /* of those, they wait and are not on the ring */
    uint32_t misses, unsought; /* see read_cached() */
    uint64_t moved; /* bytes without the ring, of what is taken from a queue in one go */
    bool fast;
    bool polls; /* kicks are waited for here; otherwise the event loop does */
    struct uf_handles handles;
    uint8_t *log; /* dirty pages, a bit each; NULL: not logged */
    uint64_t log_size;
    uint64_t broken;      /* queues that broke since Python asked */
    const char *fault[UF_QUEUES];
    uint64_t now_ns; /* of this batch */
    uint64_t fast_requests[UF_OPCODES];
    struct uf_meter meter; /* of requests that Python never saw */
};

int uf_guest_open(struct uf_guest *g);
void uf_guest_close(struct uf_guest *g);
int uf_guest_start(struct uf_guest *g, uint32_t queue);
int uf_guest_stop(struct uf_guest *g, uint32_t queue);
uint32_t uf_guest_take(struct uf_guest *g, uint32_t *chains, uint32_t room);
int uf_guest_finish(struct uf_guest *g, uint32_t chain, uint32_t written);
int uf_guest_give(struct uf_guest *g, uint32_t queue, uint16_t head, uint32_t written);
int uf_guest_cancel(struct uf_guest *g);

/* For uf_turn. Whether any queue has entries that nobody took; looks at memory alone. */
bool uf_guests_ready(const struct uf_ring *r);
/* Have every driver kick for its next entry; whether one came before it could know. */
bool uf_guests_ask(struct uf_ring *r);
/* Before a batch: what time it is, for all of the batch. */
void uf_guests_tick(struct uf_ring *r);
/* Take a completion. */
void uf_guests_complete(struct uf_ring *r, const struct io_uring_cqe *cqe);
/* After completions: take requests. Adds what Python has to hear of to `out`, which has `n`
 * entries, and returns how many it then has; *consumed counts requests taken. */
int uf_guests_turn(struct uf_ring *r, struct uf_batch *out, int n, unsigned *consumed);
/* Before a submission: tell drivers of what came back, wait for kicks. */
void uf_guests_settle(struct uf_ring *r);

#endif
