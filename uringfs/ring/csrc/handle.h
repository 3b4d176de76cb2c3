/* The table of open files, and what a READ, WRITE or FSYNC has to be like to be served without
 * Python: the same for requests from a device and from a guest. */
#ifndef URINGFS_HANDLE_H
#define URINGFS_HANDLE_H

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

#include "ring.h"

#define UF_LARGE (256u << 10) /* bytes that are worth a thread to copy them */
#define UF_SMALL_WRITE (64u << 10)
#define UF_MAX_ERROR 511 /* the device refuses replies with greater numbers: fuse_dev_do_write() */

#ifndef FUSE_WRITE_KILL_SUIDGID
#define FUSE_WRITE_KILL_SUIDGID (1 << 2)
#endif

/* One entry of the handle table, which Python fills (fs/handles.py) and both read. */
struct uf_handle {
    union {
        struct {
            int32_t fd;
            uint32_t flags; /* O_* of the open file, and UF_HANDLE_FAST */
        };
        uint64_t opened; /* both, as Python writes them */
    };
    uint64_t fh;    /* 0: not open */
    uint64_t nodeid;
    uint32_t in_flight; /* requests of the pump that shares Python's thread; C counts */
    uint32_t reserved;
};
#define UF_HANDLE_FAST 0x80000000u   /* the pump may serve it */
#define UF_HANDLE_MEMORY 0x40000000u /* its file system is memory: transfers never wait */
#define UF_HANDLE_LIST 0x10000000u   /* a directory that the pump may list */
#define UF_HANDLE_CACHED 0x04000000u /* its client reads it by way of the page cache */
#define UF_HANDLE_LOCKED 0x20000000u /* in row 0: there are locks, which a FLUSH may drop */

_Static_assert(sizeof(struct uf_handle) == 32, "fs/handles.py packs the same 32 bytes");

struct uf_handles {
    struct uf_handle *rows;
    uint32_t count;
    uint32_t flag_mask; /* O_* that a request must share with its handle */
    uint16_t no_fsetid; /* personality without CAP_FSETID; 0: Python clears set-ID bits */
    uint32_t *moved_kib; /* by the transfers of each row; wraps. NULL: nobody wants to know */
    uint32_t *written;   /* see order.h */
    struct uf_handle found;
};

static inline uint32_t uf_row(const struct uf_handle *h)
{
    return (uint32_t)h->fh;
}

static inline bool uf_has_locks(const struct uf_handles *t)
{
    return __atomic_load_n(&t->rows[0].flags, __ATOMIC_RELAXED) & UF_HANDLE_LOCKED;
}

/* The row as it was found, for it may be emptied meanwhile (lane.c tells how long its descriptor
 * can be used): valid until the next is looked up. */

static inline const struct uf_handle *uf_find_handle(struct uf_handles *t, uint64_t fh,
                                                     uint64_t nodeid, uint32_t trait)
{
    uint32_t index = (uint32_t)fh;
    if (!index || index >= t->count) /* row 0 is no handle's */
        return NULL;
    const struct uf_handle *row = &t->rows[index];
    struct uf_handle *h = &t->found;
    h->nodeid = __atomic_load_n(&row->nodeid, __ATOMIC_ACQUIRE); /* written last */
    h->fh = __atomic_load_n(&row->fh, __ATOMIC_RELAXED);
    h->opened = __atomic_load_n(&row->opened, __ATOMIC_RELAXED);
    if (h->fh != fh || h->nodeid != nodeid || !(h->flags & trait))
        return NULL;
    return h;
}

/* The handle of a plain READ, or NULL. */
static inline const struct uf_handle *uf_to_read(struct uf_handles *t, uint64_t nodeid,
                                                 const struct fuse_read_in *arg)
{
    const struct uf_handle *h = uf_find_handle(t, arg->fh, nodeid, UF_HANDLE_FAST);
    return h && !((arg->flags ^ h->flags) & t->flag_mask) ? h : NULL;
}

/* The same for a WRITE: what comes from the cache knows no flags. */
static inline const struct uf_handle *uf_to_write(struct uf_handles *t, uint64_t nodeid,
                                                  const struct fuse_write_in *arg)
{
    const struct uf_handle *h = uf_find_handle(t, arg->fh, nodeid, UF_HANDLE_FAST);
    if (!h || (arg->write_flags & FUSE_WRITE_KILL_SUIDGID && !t->no_fsetid))
        return NULL;
    uint32_t differ = arg->write_flags & FUSE_WRITE_CACHE ? h->flags : arg->flags ^ h->flags;
    return differ & t->flag_mask ? NULL : h;
}

/* For pwritev2(2) with RWF_DSYNC or RWF_SYNC, which the kernel tells as flags the file lacks. */
static inline __kernel_rwf_t uf_sync_flags(uint32_t flags)
{
    return (flags & O_SYNC & ~O_DSYNC ? RWF_SYNC : 0) | (flags & O_DSYNC ? RWF_DSYNC : 0);
}

/* How busy a file is. */
static inline void uf_count_moved(const struct uf_handles *t, const struct uf_handle *h,
                                  uint32_t bytes)
{
    if (t->moved_kib)
        t->moved_kib[uf_row(h)] += (bytes + 1023) >> 10;
}

/* What a WRITE asks for beside the transfer. */
static inline void uf_as_asked(const struct uf_handles *t, const struct uf_handle *h,
                               const struct fuse_write_in *arg, struct io_uring_sqe *sqe)
{
    if (arg->write_flags & FUSE_WRITE_KILL_SUIDGID)
        sqe->personality = t->no_fsetid;
    sqe->rw_flags = uf_sync_flags(arg->flags & ~h->flags);
}

/* A negative offset is an error of its own, and -1 means the file's position to io_uring. */
static inline bool uf_is_transfer(uint32_t size, uint32_t most, uint64_t offset)
{
    return size && size <= most && offset <= INT64_MAX;
}

/* A file system in memory has nothing to wait for, and offers no way to say so (FMODE_NOWAIT):
 * io_uring would hand the transfer to a thread. That costs far more than a small transfer; with
 * a large one, this thread meanwhile copies the next. */
static inline bool uf_is_better_now(const struct uf_handle *h, uint32_t size)
{
    return h->flags & UF_HANDLE_MEMORY && size < UF_LARGE;
}

/* ext4 does not write to the page cache without being allowed to wait, so that io_uring hands each
 * write to a thread; a small write itself takes a fifth of that. */
static inline bool uf_is_small_write(const struct uf_handle *h, const struct fuse_write_in *arg)
{
    return arg->size <= UF_SMALL_WRITE && !((h->flags | arg->flags) & (O_DIRECT | O_SYNC));
}

/* What close(2) of one descriptor reports is what closing a duplicate reports: 0 or -errno. */
static inline int uf_close_duplicate(const struct uf_handle *h)
{
    int duplicate = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
    return duplicate < 0 || close(duplicate) < 0 ? -errno : 0;
}

#endif
