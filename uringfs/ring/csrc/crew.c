/* Every pump that listens is woken for each request, though but one gets it, and the more pumps
 * share the requests, the fewer of them are sent and taken together. So as many listen as there is
 * work for. A pump whose thread was running nearly all the time, and moved data with it, calls one
 * more; one leaves that was running for a small part of it, or for not so much and with what came
 * one by one. A thread that would run, but gets no processor, is not busy in this sense: another
 * thread would get none either. */
#include "crew.h"
#include "lane.h"

#define UF_CREW_MOVED 20u  /* transfers between two looks that are some */
#define UF_CREW_AT_ONCE 2u /* if so many came at a time: what comes one by one nobody can share */
#define UF_CREW_QUIET 20u

static uint64_t crew_busy_ns(const struct uf_pump *p)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec - p->ring->spun_ns;
}

static void crew_call(struct uf_pump *p)
{
    struct uf_crew *crew = p->crew;
    for (uint32_t i = 1; i < crew->count; i++) {
        uint32_t off = 0;
        if (!__atomic_compare_exchange_n(&crew->on_duty[i], &off, 1, false, __ATOMIC_ACQ_REL,
                                         __ATOMIC_RELAXED))
            continue;
        if (uf_lane_call(p->ring, crew->ring_fd[i]) < 0)
            __atomic_store_n(&crew->on_duty[i], 0, __ATOMIC_RELEASE);
        return;
    }
}

void uf_crew_look(struct uf_pump *p)
{
    uint64_t busy_ns = crew_busy_ns(p), elapsed = p->now_ns - p->looked_ns;
    uint64_t moved = p->fast_requests[FUSE_READ] + p->fast_requests[FUSE_WRITE];
    uint64_t permille = (busy_ns - p->looked_busy_ns) * 1000 / elapsed;
    uint64_t since = moved - p->looked_moved;
    bool some = since >= UF_CREW_MOVED &&
                since >= UF_CREW_AT_ONCE * (p->arrivals - p->looked_arrivals);
    p->looked_ns = p->now_ns;
    p->looked_busy_ns = busy_ns;
    p->looked_moved = moved;
    p->looked_arrivals = p->arrivals;
    bool to_share = some && permille >= p->crew->leave_permille;
    p->quiet = to_share || permille >= p->crew->call_permille ? 0 : p->quiet + 1;
    if (permille >= p->crew->call_permille && some) {
        crew_call(p);
    } else if (p->number && p->quiet >= UF_CREW_QUIET) {
        uf_pump_leave(p);
        __atomic_store_n(&p->crew->on_duty[p->number], 0, __ATOMIC_RELEASE);
    }
}
