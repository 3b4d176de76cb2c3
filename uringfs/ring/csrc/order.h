/* What a client reads through its page cache stays there, so a READ has to find what was sent
 * before it, and the ring keeps no order.
 *
 * The kernel puts the bytes of a WRITE into the page first (fuse_fill_write_pages()), and drops
 * the page if the file seems to have been changed by others (FUSE_AUTO_INVAL_DATA). A READ that
 * then overtakes the WRITE fills a page with what was there before it, zeros behind the old end,
 * and the client is shown those for as long as the page lasts.
 *
 * The kernel has one such WRITE of a file under way at a time. What goes past the page cache, or
 * is written back from it later, it keeps apart from READs itself. */
#ifndef URINGFS_ORDER_H
#define URINGFS_ORDER_H

#include "pump.h"

/* A WRITE has come, for Python or for the pump. */
static inline void uf_note_write(struct uf_pump *p, uint32_t slot, const struct fuse_in_header *in,
                                 const void *body)
{
    struct fuse_write_in arg;
    memcpy(&arg, body, sizeof(arg));
    if (in->len < UF_IN_SIZE || arg.write_flags & FUSE_WRITE_CACHE || arg.flags & O_DIRECT)
        return;
    p->slots[slot].writes = in->nodeid;
    p->writing += in->nodeid != 0;
}

/* It is done, whatever came of it. Slots with other requests have nothing to end. */
static inline void uf_end_write(struct uf_pump *p, uint32_t slot)
{
    p->writing -= p->slots[slot].writes != 0;
    p->slots[slot].writes = 0;
}

/* Whether a READ of this inode would overtake one. */
static inline bool uf_is_written(const struct uf_pump *p, uint64_t nodeid)
{
    for (uint32_t slot = 0; p->writing && slot < p->slot_count; slot++)
        if (p->slots[slot].writes == nodeid)
            return true;
    return false;
}

#endif
