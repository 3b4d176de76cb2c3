/* A thin shim over liburing: set-up, one generic SQE writer, and one call per loop turn.
 * Every function returns 0 or a count, or a negated errno, as liburing does.
 * cffi releases the GIL around each call; Ring (ring.py) keeps callers to one thread. */
#include "lane.h"
#include "late.h"
#include "virtqueue.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define UF_TURN_ENTERS 256
/* How long the refusal of a reply may go unnoticed, since replies wake nobody. */
#define UF_REFUSAL_NS 20000000

static void probe_opcodes(struct uf_ring *r)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(&r->uring);
    if (!probe)
        return;
    for (int op = 0; op <= probe->last_op; op++)
        r->opcodes[op] = (uint8_t)io_uring_opcode_supported(probe, op);
    io_uring_free_probe(probe);
}

int uf_ring_open(struct uf_ring *r, uint32_t entries, uint32_t cq_entries, uint32_t setup_flags)
{
    struct io_uring_params params = {.flags = setup_flags | IORING_SETUP_CLAMP};
    if (cq_entries) {
        params.flags |= IORING_SETUP_CQSIZE;
        params.cq_entries = cq_entries;
    }
    memset(r, 0, sizeof(*r));
    r->fd = -1;
    int rc = io_uring_queue_init_params(entries, &r->uring, &params);
    if (rc < 0)
        return rc;
    r->features = params.features;
    r->setup_flags = params.flags;
    r->sq_entries = params.sq_entries;
    r->cq_entries = params.cq_entries;
    r->fd = r->uring.ring_fd;
    probe_opcodes(r);
    return 0;
}

/* What follows every submission: it may have taken less than all. */
static int submitted(struct uf_ring *r, int rc)
{
    if (r->pump && io_uring_sq_ready(&r->uring))
        uf_pump_mend(r->pump);
    return rc;
}

int uf_flush(struct uf_ring *r)
{
    return submitted(r, io_uring_submit(&r->uring));
}

static void settle(struct uf_ring *r)
{
    if (r->pump)
        uf_pump_settle(r->pump);
    uf_guests_settle(r);
}

/* Submit all that is queued: once this returns 0, the kernel holds the files it needs. */
int uf_submit(struct uf_ring *r)
{
    settle(r);
    while (io_uring_sq_ready(&r->uring)) {
        int rc = uf_flush(r);
        if (rc <= 0)
            return rc < 0 ? rc : -EAGAIN;
    }
    return 0;
}

/* liburing 2.3 declares functions for these, but its shared library does not export them. */
static int register_by_number(struct uf_ring *r, unsigned opcode, void *arg, unsigned count)
{
    long rc = syscall(__NR_io_uring_register, r->fd, opcode, arg, count);
    return rc < 0 ? -errno : 0;
}

int uf_ring_enable(struct uf_ring *r)
{
    return register_by_number(r, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

/* What this extension registers. */
static const uint8_t register_ops[] = {
    IORING_REGISTER_EVENTFD,      IORING_UNREGISTER_EVENTFD,     IORING_REGISTER_PERSONALITY,
    IORING_UNREGISTER_PERSONALITY, IORING_REGISTER_FILES2,       IORING_REGISTER_FILES_UPDATE,
    IORING_REGISTER_BUFFERS2,     IORING_REGISTER_BUFFERS_UPDATE, IORING_REGISTER_PBUF_RING,
    IORING_UNREGISTER_PBUF_RING,
};
#define UF_SQE_FLAGS \
    (IOSQE_FIXED_FILE | IOSQE_IO_LINK | IOSQE_BUFFER_SELECT | IOSQE_CQE_SKIP_SUCCESS)

/* From uf_ring_enable on, let the kernel refuse all other opcodes than these. */
int uf_ring_restrict(struct uf_ring *r, const uint8_t *opcodes, uint32_t count)
{
    struct io_uring_restriction all[256 + sizeof(register_ops) + 1] = {0};
    uint32_t n = 0;

    for (uint32_t i = 0; i < count && i < 256; i++)
        if (r->opcodes[opcodes[i]])
            all[n++] = (struct io_uring_restriction){
                .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = opcodes[i]};
    for (uint32_t i = 0; i < sizeof(register_ops); i++)
        all[n++] = (struct io_uring_restriction){
            .opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = register_ops[i]};
    all[n++] = (struct io_uring_restriction){
        .opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .sqe_flags = UF_SQE_FLAGS};
    return register_by_number(r, IORING_REGISTER_RESTRICTIONS, all, n);
}

void uf_ring_close(struct uf_ring *r)
{
    if (r->fd >= 0)
        io_uring_queue_exit(&r->uring);
    r->pump = NULL;
    r->guests = NULL;
    r->fd = -1;
}

/* Write one SQE, in the words of struct io_uring_sqe. -EBUSY asks the caller to reap first: the
 * submission queue is full and what it would complete no longer fits the completion queue. */
int uf_push(struct uf_ring *r, uint64_t user_data, uint8_t opcode, uint8_t sqe_flags, int32_t fd,
            void *addr, uint32_t len, int64_t off, uint32_t op_flags, uint16_t buf_index,
            uint16_t personality, int32_t splice_fd_in, uint64_t addr3)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);
    if (!sqe) {
        int rc = uf_flush(r);
        if (rc < 0)
            return rc;
        if (io_uring_cq_has_overflow(&r->uring))
            return -EBUSY;
        sqe = io_uring_get_sqe(&r->uring);
        if (!sqe)
            return -EBUSY;
    }
    memset(sqe, 0, sizeof(*sqe));
    sqe->opcode = opcode;
    sqe->flags = sqe_flags;
    sqe->fd = fd;
    sqe->off = (uint64_t)off;
    sqe->addr = (uint64_t)(uintptr_t)addr;
    sqe->len = len;
    sqe->rw_flags = (__kernel_rwf_t)op_flags;
    sqe->user_data = user_data;
    sqe->buf_index = buf_index;
    sqe->personality = personality;
    sqe->splice_fd_in = splice_fd_in;
    sqe->addr3 = addr3;
    return 0;
}

static bool is_guests(const struct io_uring_cqe *cqe)
{
    unsigned tag = cqe->user_data >> UF_TAG_SHIFT;
    return tag == UF_TAG_KICK || tag == UF_TAG_GUEST_IO;
}

static bool is_reply(const struct io_uring_cqe *cqe)
{
    return cqe->user_data >> UF_TAG_SHIFT == UF_TAG_REPLY;
}

/* Move what is in the completion queue to `out`, consuming C's own completions on the way.
 * *consumed counts those. `at_once`: Python is to have what it might have later. */
static int reap(struct uf_ring *r, struct uf_batch *out, unsigned *consumed, bool at_once)
{
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0, replies = 0;
    int n = 0;

    if (r->pump)
        uf_pump_tick(r->pump);
    if (r->guests)
        uf_guests_tick(r);
    io_uring_for_each_cqe(&r->uring, head, cqe)
    {
        if (n == UF_BATCH)
            break;
        seen++;
        replies += is_reply(cqe);
        if (cqe->user_data >> UF_TAG_SHIFT == UF_TAG_FORWARDED)
            UF_TAKES_OVER(&uf_forwarded);
        out->user_data[n] = cqe->user_data;
        out->res[n] = cqe->res;
        out->flags[n] = cqe->flags;
        if (is_guests(cqe)) {
            uf_guests_complete(r, cqe);
            ++*consumed;
        } else if (cqe->user_data >> UF_TAG_SHIFT >= UF_TAG_FIRST_C &&
            !(r->pump && uf_pump_complete(r->pump, cqe, &out->user_data[n], &out->res[n])))
            ++*consumed;
        else
            n++;
    }
    io_uring_cq_advance(&r->uring, seen);
    /* Replies that went out by the ring say nothing of how much is asked for at a time. */
    r->last_batch = seen - replies;
    n = uf_guests_turn(r, out, n, consumed);
    return r->pump ? uf_hand_over(r->pump, out, n, at_once) : n;
}

int uf_peek(struct uf_ring *r, struct uf_batch *out)
{
    unsigned consumed = 0;
    return reap(r, out, &consumed, true);
}

static int64_t now_ns(void)
{
    return (int64_t)uf_clock_ns();
}

/* -EBUSY (completions overflowed) and -EAGAIN (no memory for a request) are cured by reaping and
 * the next turn; after -EINTR the caller must let Python run its signal handlers. */
static bool is_passing(int rc)
{
    return rc == -ETIME || rc == -EINTR || rc == -EBUSY || rc == -EAGAIN;
}

static bool kernel_has_more(struct uf_ring *r)
{
    return IO_URING_READ_ONCE(*r->uring.sq.kflags) & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN);
}

/* Whether a turn would find completions, as far as the kernel tells without being entered. */
bool uf_pending(struct uf_ring *r)
{
    return io_uring_cq_ready(&r->uring) || kernel_has_more(r);
}

static void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Replies that complete at once are nothing to come back for. */
static bool has_found(struct uf_ring *r)
{
    return io_uring_cq_ready(&r->uring) > r->at_once || kernel_has_more(r) || uf_guests_ready(r);
}

/* Look for completions for a while before sleeping, since a sleeping virtual CPU wakes slowly.
 * Only while little is going on at a time, since a full queue needs no wake-up, and no disk is part
 * of it: beside the disk a sleep costs little, and it leaves this CPU to the client, which then need
 * not be woken on another one. Or where the wait is shorter than a sleep. Looking in vain again and
 * again, it looks less and less often (at the least, once in 4096 waits). */
static bool spin(struct uf_ring *r, int64_t start, int64_t timeout_ns)
{
    bool few = r->last_batch <= UF_FEW && !r->transfers && r->idle_turns > UF_MEMORY_TURNS;
    bool worth_it = few || r->mean_wait_ns < UF_SHORT_WAIT_NS;
    if (!r->spin_ns || !worth_it || !(r->setup_flags & IORING_SETUP_TASKRUN_FLAG))
        return false;
    if (r->spin_skip) {
        r->spin_skip--;
        return false;
    }
    int64_t patience = (int64_t)r->spin_ns;
    if (timeout_ns > 0 && timeout_ns < patience)
        patience = timeout_ns;
    int64_t end = start + patience;
    if (io_uring_sq_ready(&r->uring))
        submitted(r, io_uring_submit_and_get_events(&r->uring));
    /* What completes when it is submitted is no find: it says nothing of how long others take. */
    if (r->guests && has_found(r))
        return true;
    r->spins++;
    int64_t now = start;
    bool found = false;
    while (now < end && !(found = has_found(r))) {
        for (int i = 0; i < 4; i++)
            cpu_relax();
        now = now_ns();
    }
    r->spun_ns += (uint64_t)(now - start);
    if (found) {
        r->spin_hits++;
        r->spin_misses = 0;
        return true;
    }
    if (++r->spin_misses >= 4)
        r->spin_skip = r->spin_misses < 12 ? 1u << r->spin_misses : 4096;
    return false;
}

static int sleep_for(struct uf_ring *r, int64_t timeout_ns)
{
    /* A time limit is always given: without one liburing would wait again after a signal that
     * came once something had been submitted. */
    struct __kernel_timespec ts = {.tv_sec = INT_MAX};
    if (r->at_once && (timeout_ns < 0 || timeout_ns > UF_REFUSAL_NS))
        timeout_ns = UF_REFUSAL_NS;
    if (timeout_ns > 0) {
        ts.tv_sec = timeout_ns / 1000000000;
        ts.tv_nsec = timeout_ns % 1000000000;
    }
    struct io_uring_cqe *cqe;
    return io_uring_submit_and_wait_timeout(&r->uring, &cqe, 1 + r->at_once, &ts, NULL);
}

static void go_in(struct uf_ring *r)
{
    if (!r->pass)
        return;
    __atomic_store_n(&r->pass->queued, r->uring.sq.sqe_tail, __ATOMIC_RELAXED);
    __atomic_store_n(&r->pass->inside, true, __ATOMIC_RELEASE);
}

static void come_back(struct uf_ring *r)
{
    if (!r->pass)
        return;
    __atomic_store_n(&r->pass->inside, false, __ATOMIC_RELAXED);
    if (!io_uring_sq_ready(&r->uring))
        __atomic_store_n(&r->pass->passes, r->pass->passes + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* both before whatever is looked up from here on */
}

/* A guest's requests are found without the kernel. */
static int submit_some(struct uf_ring *r)
{
    bool told = r->setup_flags & IORING_SETUP_TASKRUN_FLAG;
    if (told && !io_uring_sq_ready(&r->uring) && !kernel_has_more(r))
        return 0;
    return io_uring_submit_and_get_events(&r->uring);
}

static int submit_and_wait(struct uf_ring *r, int64_t timeout_ns)
{
    if (timeout_ns == 0)
        return submitted(r, io_uring_submit_and_get_events(&r->uring));
    int64_t start = now_ns();
    r->idle_turns++;
    bool found = spin(r, start, timeout_ns) || uf_guests_ask(r);
    int rc = found ? submit_some(r) : sleep_for(r, timeout_ns);
    r->mean_wait_ns += (now_ns() - start - r->mean_wait_ns) / 8;
    return submitted(r, rc);
}

static int enter(struct uf_ring *r, int64_t timeout_ns)
{
    settle(r);
    bool waits = r->pump && r->pump->late_count;
    if (waits && (timeout_ns < 0 || timeout_ns > UF_LATE_NS))
        timeout_ns = UF_LATE_NS;
    go_in(r);
    int rc = submit_and_wait(r, timeout_ns);
    come_back(r);
    return rc;
}

/* One turn of an event loop: submit what is queued, wait for a completion that concerns Python
 * (timeout_ns: 0 not at all, < 0 for ever), and hand out up to UF_BATCH completions.
 *
 * Comes back without any also after a signal, at the time limit, and now and then while the pump
 * is never idle: Python runs its signal handlers only when it is back. */
static int turn(struct uf_ring *r, int64_t timeout_ns, struct uf_batch *out)
{
    int64_t deadline = timeout_ns > 0 ? now_ns() + timeout_ns : 0;

    for (int entered = 0; entered < UF_TURN_ENTERS; entered++) {
        int rc = enter(r, timeout_ns);
        if (rc < 0 && !is_passing(rc))
            return rc;
        unsigned consumed = 0;
        int n = reap(r, out, &consumed, timeout_ns == 0);
        if (n > 0)
            return n;
        /* DEFER_TASKRUN and overflowed completions appear only after another enter. */
        bool more = consumed && io_uring_cq_has_overflow(&r->uring);
        if (rc == -EINTR || !consumed || (timeout_ns == 0 && !more))
            return 0;
        if (timeout_ns > 0) {
            timeout_ns = deadline - now_ns();
            if (timeout_ns <= 0)
                return 0;
        }
    }
    return 0;
}

int uf_turn(struct uf_ring *r, int64_t timeout_ns, struct uf_batch *out)
{
    int n = turn(r, timeout_ns, out);
    return n < 0 || !r->pump ? n : uf_tell_new(&r->pump->nodes, out, n);
}

int uf_register_eventfd(struct uf_ring *r, int fd)
{
    return io_uring_register_eventfd(&r->uring, fd);
}

int uf_unregister_eventfd(struct uf_ring *r)
{
    return io_uring_unregister_eventfd(&r->uring);
}

int uf_register_files_sparse(struct uf_ring *r, uint32_t count)
{
    return io_uring_register_files_sparse(&r->uring, count);
}

int uf_update_file(struct uf_ring *r, uint32_t slot, int fd)
{
    return io_uring_register_files_update(&r->uring, slot, &fd, 1);
}

int uf_register_buffers_sparse(struct uf_ring *r, uint32_t count)
{
    return io_uring_register_buffers_sparse(&r->uring, count);
}

int uf_update_buffer(struct uf_ring *r, uint32_t slot, void *base, size_t length)
{
    struct iovec iov = {.iov_base = base, .iov_len = length};
    __u64 tag = 0;
    return io_uring_register_buffers_update_tag(&r->uring, slot, &iov, &tag, 1);
}

int uf_register_personality(struct uf_ring *r)
{
    return io_uring_register_personality(&r->uring);
}

int uf_unregister_personality(struct uf_ring *r, int id)
{
    return io_uring_unregister_personality(&r->uring, id);
}
