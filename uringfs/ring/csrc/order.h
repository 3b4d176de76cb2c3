/* What a client reads through its page cache stays there, so a READ has to find what was sent
 * before it, and the ring keeps no order.
 *
 * The kernel puts the bytes of a WRITE into the page first (fuse_fill_write_pages()), and drops
 * the page if the file seems to have been changed by others (FUSE_AUTO_INVAL_DATA). A READ that
 * then overtakes the WRITE fills a page with what was there before it, zeros behind the old end,
 * and the client is shown those for as long as the page lasts.
 *
 * So WRITEs under way are counted, by a hash of the inode, in a table that all have in common who
 * serve the same files; a READ waits until the count is 0. The kernel has one such WRITE of a file
 * under way at a time. What goes past the page cache, or is written back from it later, it keeps
 * apart from READs itself. */
#ifndef URINGFS_ORDER_H
#define URINGFS_ORDER_H

#include "handle.h"

#include <string.h>

#define UF_WRITTEN 1024u
#define UF_NUDGE_NS 50000 /* about what a WRITE takes; for who waits for another thread's */

/* Where those of an inode are counted. */
static inline uint32_t *uf_written(const struct uf_handles *t, uint64_t nodeid)
{
    return &t->written[nodeid % UF_WRITTEN];
}

/* Whether a READ would overtake one. */
static inline bool uf_is_written(const struct uf_handles *t, uint64_t nodeid)
{
    return __atomic_load_n(uf_written(t, nodeid), __ATOMIC_ACQUIRE);
}

/* A WRITE has come, whoever will serve it: where it is counted, or NULL if it is not. */
static inline uint32_t *uf_begin_write(const struct uf_handles *t, uint64_t nodeid,
                                       const void *body)
{
    struct fuse_write_in arg;
    memcpy(&arg, body, sizeof(arg));
    if (arg.write_flags & FUSE_WRITE_CACHE || arg.flags & O_DIRECT)
        return NULL;
    uint32_t *count = uf_written(t, nodeid);
    __atomic_fetch_add(count, 1, __ATOMIC_ACQ_REL);
    return count;
}

/* It is done, whatever came of it. */
static inline void uf_end_write(uint32_t **count)
{
    if (*count)
        __atomic_fetch_sub(*count, 1, __ATOMIC_ACQ_REL);
    *count = NULL;
}

#endif
