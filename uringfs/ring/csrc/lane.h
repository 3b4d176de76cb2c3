/* A lane: a thread with a ring, a pump and a channel of the device of its own. See lane.c. */
#ifndef URINGFS_LANE_H
#define URINGFS_LANE_H

#include "pump.h"

#include <pthread.h>

/* To the event loop's ring: what UF_TAG_REQUEST says, with the lane's number in between, or
 * UF_LANE_ENDED in place of a slot. */
#define UF_TAG_FORWARDED 5u
#define UF_LANE_ENDED 0xfffffffeu
/* To the lane's ring: an order in bits 48 to 55, an offset of 16 bits, and a slot. */
#define UF_TAG_ORDER 6u
/* On either: the message about this slot could not be delivered. */
#define UF_TAG_UNSENT 7u
#define UF_ORDER_SHIFT 48

enum uf_order {
    UF_ORDER_REPLY,  /* res: bytes */
    UF_ORDER_DROP,
    UF_ORDER_CANCEL, /* slot and res: lower and upper half of `unique` */
    UF_ORDER_LISTEN, /* go on duty */
    UF_ORDER_STOP,   /* take no more requests */
    UF_ORDER_END,    /* and no more orders */
};

struct uf_lane {
    struct uf_pump *pump;
    int home_fd; /* of the event loop's ring */
    uint32_t number;
    pthread_t thread;
    bool ending;
    struct uf_pass pass;
    struct uf_batch batch;
};

extern char uf_forwarded; /* by any lane: a name for it, for UF_TAKES_OVER() */

int uf_lane_start(struct uf_lane *lane);
int uf_lane_join(struct uf_lane *lane);
/* The event loop's side: give the lane of that ring an order. */
int uf_lane_order(struct uf_ring *home, const struct uf_lane *lane, uint32_t order, uint32_t slot,
                  uint32_t offset, uint32_t res);
/* For a crew: have the lane of that ring listen. */
int uf_lane_call(struct uf_ring *from, int ring_fd);
uint64_t uf_lane_passes(struct uf_lane *lane);
bool uf_lane_is_past(struct uf_lane *lane, uint64_t passes);

#endif
