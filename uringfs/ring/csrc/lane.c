/* A lane is a thread that knows nothing of Python. It has a ring, and on that ring a pump, which
 * listens to a channel of the device that is the lane's own (FUSE_DEV_IOC_CLONE): the kernel gives
 * a request to whoever reads first, and wants its reply where it was read.
 *
 * What the pump does not serve is forwarded: a message (IORING_OP_MSG_RING) to the event loop's
 * ring names lane, slot and length. The request stays where it is, its slot is Python's until an
 * order comes back the same way, and then the lane writes the reply. So what a slot holds and how
 * it stands is changed by one thread at a time, and each message passes it on; the kernel, which
 * carries it, orders what was written before.
 *
 * All lanes read one table of open files, without a lock and without a count. A lane uses a
 * descriptor that it found there only until the kernel has taken what it queued (then the kernel
 * holds the file itself). So a file that was closed, whose row is empty by then, is let go once
 * each lane has passed: it has entered the kernel since, and left nothing queued. A lane that
 * sleeps need not be woken for that; it has said how much the kernel will have taken, and the head
 * of its submission queue tells that it has. */
#include "lane.h"

#include <errno.h>
#include <signal.h>

char uf_forwarded;

static int lane_send(struct uf_ring *from, int to, uint64_t data, uint32_t res, uint64_t unsent)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&from->uring);
    if (!sqe) {
        uf_flush(from);
        sqe = io_uring_get_sqe(&from->uring);
    }
    if (!sqe)
        return -EBUSY;
    io_uring_prep_rw(IORING_OP_MSG_RING, sqe, to, NULL, res, data);
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe_set_data64(sqe, (uint64_t)UF_TAG_UNSENT << UF_TAG_SHIFT | unsent);
    return 0;
}

static int lane_tell(struct uf_lane *lane, uint32_t slot, int32_t res)
{
    uint64_t data = (uint64_t)UF_TAG_FORWARDED << UF_TAG_SHIFT | (uint64_t)lane->number << 32 | slot;
    UF_HANDS_OVER(&uf_forwarded);
    return lane_send(lane->pump->ring, lane->home_fd, data, (uint32_t)res, slot);
}

static void lane_obey(struct uf_lane *lane, uint64_t data, int32_t res)
{
    struct uf_pump *p = lane->pump;
    uint32_t slot = (uint32_t)data;
    UF_TAKES_OVER(p);
    switch ((enum uf_order)(data >> UF_ORDER_SHIFT & 0xff)) {
    case UF_ORDER_REPLY:
        uf_pump_reply(p, slot, data >> 32 & 0xffff, (uint32_t)res);
        break;
    case UF_ORDER_DROP:
        uf_pump_drop(p, slot);
        break;
    case UF_ORDER_CANCEL:
        uf_pump_interrupt(p, (uint64_t)(uint32_t)res << 32 | slot);
        break;
    case UF_ORDER_LISTEN:
        p->off_duty = false;
        p->quiet = 0;
        break;
    case UF_ORDER_STOP:
        uf_pump_stop(p);
        break;
    case UF_ORDER_END:
        lane->ending = true;
        break;
    }
}

/* Nobody who waits is left without a reply, though it cannot be said to Python. */
static void lane_take(struct uf_lane *lane, uint64_t data, int32_t res)
{
    uint32_t slot = (uint32_t)data;
    switch (data >> UF_TAG_SHIFT) {
    case UF_TAG_REQUEST:
        if (lane_tell(lane, slot, res) < 0)
            uf_pump_refuse(lane->pump, slot);
        break;
    case UF_TAG_UNSENT:
        uf_pump_refuse(lane->pump, slot);
        break;
    case UF_TAG_ORDER:
        lane_obey(lane, data, res);
        break;
    }
}

static void *lane_main(void *arg)
{
    struct uf_lane *lane = arg;
    struct uf_ring *ring = lane->pump->ring;
    uint32_t device = lane->pump->device_file;
    int rc = uf_ring_enable(ring);
    if (rc == 0)
        rc = uf_pump_start(lane->pump);
    while (rc >= 0 && !lane->ending) {
        rc = uf_turn(ring, -1, &lane->batch);
        for (int i = 0; i < rc; i++)
            lane_take(lane, lane->batch.user_data[i], lane->batch.res[i]);
    }
    if (rc < 0)
        lane_tell(lane, UF_NO_SLOT, rc);
    uf_pump_close(lane->pump);
    uf_update_file(ring, device, -1);
    lane_tell(lane, UF_LANE_ENDED, 0);
    uf_submit(ring);
    return NULL;
}

/* All is set up, but for what only the thread itself can do. Signals are for other threads. */
int uf_lane_start(struct uf_lane *lane)
{
    sigset_t all, before;
    lane->pump->apart = true;
    lane->pump->ring->pass = &lane->pass;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&lane->thread, NULL, lane_main, lane);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -rc;
}

/* To be called once UF_LANE_ENDED has come. */
int uf_lane_join(struct uf_lane *lane)
{
    return -pthread_join(lane->thread, NULL);
}

int uf_lane_order(struct uf_ring *home, const struct uf_lane *lane, uint32_t order, uint32_t slot,
                  uint32_t offset, uint32_t res)
{
    uint64_t data = (uint64_t)UF_TAG_ORDER << UF_TAG_SHIFT | (uint64_t)order << UF_ORDER_SHIFT |
                    (uint64_t)offset << 32 | slot;
    UF_HANDS_OVER(lane->pump);
    return lane_send(home, lane->pump->ring->fd, data, res, (uint64_t)lane->number << 32 | slot);
}

/* Should the message get lost, the lane stays away: nobody waits for it. */
int uf_lane_call(struct uf_ring *from, int ring_fd)
{
    uint64_t data = (uint64_t)UF_TAG_ORDER << UF_TAG_SHIFT |
                    (uint64_t)UF_ORDER_LISTEN << UF_ORDER_SHIFT;
    return lane_send(from, ring_fd, data, 0, UF_NO_SLOT);
}

/* To be asked after a row was emptied: a mark for uf_lane_is_past(). */
uint64_t uf_lane_passes(struct uf_lane *lane)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&lane->pass.passes, __ATOMIC_ACQUIRE);
}

/* Whether the lane uses nothing any more that it found before that mark. */
bool uf_lane_is_past(struct uf_lane *lane, uint64_t passes)
{
    if (__atomic_load_n(&lane->pass.passes, __ATOMIC_ACQUIRE) != passes)
        return true;
    if (!__atomic_load_n(&lane->pass.inside, __ATOMIC_ACQUIRE))
        return false;
    unsigned taken = __atomic_load_n(lane->pump->ring->uring.sq.khead, __ATOMIC_ACQUIRE);
    return taken == __atomic_load_n(&lane->pass.queued, __ATOMIC_RELAXED);
}
