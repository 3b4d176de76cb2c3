/* The slots that hold no request, and how many of them the kernel may fill. */
#ifndef URINGFS_SLOTS_H
#define URINGFS_SLOTS_H

#include "pump.h"

/* Free slots are a stack, of which the kernel is offered the top, no more than its bursts of
 * requests need: a slot used a moment ago is still in the caches, and one never used costs no
 * memory. */
static inline void uf_put_slot(struct uf_pump *p, uint32_t slot)
{
    p->slots[slot].state = UF_SLOT_FREE;
    p->spare[p->spares++] = (uint16_t)slot;
}

static inline void uf_offer_slots(struct uf_pump *p)
{
    int mask = (int)p->free_ring_size - 1, added = 0;
    for (; p->spares && p->offered < p->window; p->offered++) {
        uint16_t slot = p->spare[--p->spares];
        io_uring_buf_ring_add(p->free_ring, uf_slot_data(p, slot) - UF_IN_SIZE,
                              p->max_transfer + UF_IN_SIZE, slot, mask, added++);
    }
    if (added)
        io_uring_buf_ring_advance(p->free_ring, added);
}

/* Called when a slot of the window was taken. A window of which half was never needed in many
 * requests is halved; one that was too small was doubled, by widen(). */
static inline void uf_watch_window(struct uf_pump *p)
{
    if (p->offered < p->least_offered)
        p->least_offered = p->offered;
    if (++p->watched < UF_WATCH)
        return;
    if (p->least_offered > p->window / 2 && p->window > UF_WINDOW)
        p->window /= 2;
    p->least_offered = p->window;
    p->watched = 0;
}

#endif
