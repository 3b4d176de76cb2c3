/* The inodes that a client knows, as far as they are held by descriptor: what LOOKUP of a known file,
 * GETATTR and SETATTR are answered by without Python. Python enters them (fs/inodes.py). */
#ifndef URINGFS_NODES_H
#define URINGFS_NODES_H

#include <linux/fuse.h>

#include "handle.h"

struct uf_node {
    uint64_t nodeid;
    uint64_t ino;
    uint64_t mnt_id;
    uint32_t dev_major;
    uint32_t dev_minor;
    int32_t fd; /* O_PATH */
    uint32_t next_by_nodeid;
    uint32_t next_by_file;
    uint32_t looked_up; /* times since Python last asked */
};

/* How long a reply is valid: a file's, a directory's. */
struct uf_valid {
    uint64_t seconds[2];
    uint32_t nanoseconds[2];
};

struct uf_nodes {
    struct uf_node *rows; /* row 0 is none's */
    uint32_t *by_nodeid;  /* heads of lists of rows, as many as there is room for rows */
    uint32_t *by_file;
    uint32_t room; /* a power of two */
    uint32_t used; /* rows up to here have been in use */
    uint32_t free; /* a list by next_by_nodeid */
    uint32_t cautious; /* lookups to come in which nothing is waited for */
    bool looks_up; /* false: who looks up what is Python's business, GETATTR is not */
    bool removes;  /* names are removed here */
    uint32_t local_major; /* a device on which a cold name may be waited for, 0: none */
    uint32_t local_minor;
    int proc_self_fd; /* a directory; -1: attributes are changed by Python */
    struct uf_valid entry;
    struct uf_valid attr;
};

/* 0, or -ENOMEM. */
int uf_nodes_enter(struct uf_nodes *t, uint64_t nodeid, int fd, uint64_t ino, uint32_t dev_major,
                   uint32_t dev_minor, uint64_t mnt_id);
void uf_nodes_leave(struct uf_nodes *t, uint64_t nodeid);
/* How often it was looked up since this was last asked. */
uint32_t uf_nodes_looked_up(struct uf_nodes *t, uint64_t nodeid);
void uf_nodes_clear(struct uf_nodes *t);

/* Whether it is on a disk of this machine's, or in its memory. */
bool uf_is_local(const struct uf_nodes *t, uint64_t nodeid);

#define UF_DONE 1 /* no body is as short */
/* Answer a LOOKUP, GETATTR, SETATTR, UNLINK or RMDIR: the length of the body that is put to `out`,
 * UF_DONE if there is none, or -errno; 0 leaves the request to Python, as all others. `alone`:
 * nobody else would have to wait. `body`: what comes after the header. */
int uf_ask_nodes(struct uf_nodes *t, struct uf_handles *handles, bool alone,
                 const struct fuse_in_header *in, const void *body, void *out);

#endif
