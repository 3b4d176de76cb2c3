/* One io_uring and what rides on it: the state shared by every C file of this extension. */
#ifndef URINGFS_RING_H
#define URINGFS_RING_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* The top 8 bits of user_data say who consumes the completion; the other 56 are the consumer's.
 * Tags below UF_TAG_FIRST_C go to Python (ring.py names them), the others never leave C. */
#define UF_TAG_SHIFT 56
#define UF_TAG_FIRST_C 0x80u
#define UF_TAG_IGNORE 0x80u

#define UF_SERIAL_MASK 0xffffffu /* 24 bits of those 56 tell apart who rides on the ring */

#define UF_BATCH 512
#define UF_NEW 32 /* inodes that come before them: nodes.c */
#define UF_OPCODES 64u /* of FUSE, and more than it has */

#define UF_FEW 4               /* completions at a time that are few: low queue depth */
#define UF_SHORT_WAIT_NS 10000 /* about what it costs to put a thread to sleep and wake it */
#define UF_MEMORY_TURNS 16     /* without a transfer: what is served now lies in memory */

/* For other threads: whether the one that drives a ring may still use what it found elsewhere
 * before it queued something for it. See lane.c. */
struct uf_pass {
    uint64_t passes; /* times it has entered the kernel and left nothing queued */
    uint32_t queued; /* where the submission queue ends that it entered with */
    bool inside;     /* from there until it comes back */
};

struct uf_ring {
    struct io_uring uring;
    uint32_t features;
    uint32_t setup_flags;
    uint32_t sq_entries;
    uint32_t cq_entries;
    int fd;
    struct uf_pump *pump;
    struct uf_guest *guests; /* a list */
    uint32_t pumps;     /* and guests that there have been */
    uint32_t transfers; /* of theirs, under way */
    uint32_t idle_turns; /* waits since the pump started one */
    uint32_t at_once;   /* entries queued that complete when submitted, and wake nobody */
    uint64_t spin_ns; /* how long to look for completions before sleeping; 0: not at all */
    uint32_t spin_misses;
    uint32_t spin_skip;
    uint32_t last_batch; /* completions found by the last look */
    int64_t mean_wait_ns; /* of the waits, the last ones counting most */
    uint64_t spins;
    uint64_t spin_hits;
    uint64_t spun_ns; /* in all */
    struct uf_pass *pass; /* NULL: nobody else has to know */
    uint8_t opcodes[256]; /* 1 where IORING_REGISTER_PROBE says the kernel has the opcode */
};

struct uf_batch {
    uint64_t user_data[UF_BATCH + UF_NEW];
    int32_t res[UF_BATCH + UF_NEW];
    uint32_t flags[UF_BATCH + UF_NEW];
};

/* For `count` more completions at `at`, among `n`. */
static inline void uf_make_room(struct uf_batch *out, int at, int count, int n)
{
    size_t rest = (size_t)(n - at);
    memmove(out->user_data + at + count, out->user_data + at, rest * sizeof(*out->user_data));
    memmove(out->res + at + count, out->res + at, rest * sizeof(*out->res));
    memmove(out->flags + at + count, out->flags + at, rest * sizeof(*out->flags));
}

static inline uint64_t uf_clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* What messages of the kernel's order, ThreadSanitizer has to be told. */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define UF_HANDS_OVER(what) __tsan_release(what)
#define UF_TAKES_OVER(what) __tsan_acquire(what)
#else
#define UF_HANDS_OVER(what) ((void)(what))
#define UF_TAKES_OVER(what) ((void)(what))
#endif

/* Set what another thread may be reading. */
static inline void uf_switch(bool *flag, bool on)
{
    __atomic_store_n(flag, on, __ATOMIC_RELAXED);
}

/* Submit what is queued, as far as the kernel takes it. */
int uf_flush(struct uf_ring *r);
/* The same, all of it. */
int uf_submit(struct uf_ring *r);
int uf_ring_enable(struct uf_ring *r);
int uf_turn(struct uf_ring *r, int64_t timeout_ns, struct uf_batch *out);
int uf_update_file(struct uf_ring *r, uint32_t slot, int fd);

#endif
