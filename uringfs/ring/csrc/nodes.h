/* The inodes that a client knows, as far as they are held by descriptor: what LOOKUP, GETATTR and
 * SETATTR are answered by without Python. Python enters them (fs/inodes.py), and hears of those
 * that were entered here. */
#ifndef URINGFS_NODES_H
#define URINGFS_NODES_H

#include <linux/fuse.h>

#include "handle.h"

/* A completion for Python: an inode was entered here (user_data: its row), and the file opened
 * (res: the row of its handle, or 0). */
#define UF_TAG_NEW 8u

struct uf_node {
    uint64_t nodeid;
    uint64_t ino;
    uint64_t mnt_id;
    uint32_t dev_major;
    uint32_t dev_minor;
    int32_t fd; /* O_PATH */
    uint32_t mode; /* of one that was entered here */
    uint32_t next_by_nodeid;
    uint32_t next_by_file;
    uint32_t looked_up; /* times since Python last asked, or was told of it */
};

/* How long a reply is valid: a file's, a directory's. */
struct uf_valid {
    uint64_t seconds[2];
    uint32_t nanoseconds[2];
};

/* How files are made: see metadata.c. Of two values the second is for O_DIRECT. */
struct uf_making {
    uint32_t open_flags; /* O_* that are the file's own; 0: no file is made here */
    uint32_t traits[2];  /* UF_HANDLE_* of its row */
    uint32_t fopen[2];   /* FOPEN_* of the reply */
    bool for_root;       /* only what a client's root makes: others have to be acted as */
    uint64_t fhs[UF_NEW]; /* ready to be used */
    uint32_t fh_count;
};

struct uf_nodes {
    struct uf_node *rows; /* row 0 is none's */
    uint32_t *by_nodeid;  /* heads of lists of rows, as many as there is room for rows */
    uint32_t *by_file;
    uint32_t room; /* a power of two */
    uint32_t used; /* rows up to here have been in use */
    uint32_t free; /* a list by next_by_nodeid */
    uint32_t count;
    uint32_t most; /* with what is entered here */
    uint32_t cautious; /* lookups to come in which nothing is waited for */
    bool looks_up; /* false: who looks up what is Python's business, GETATTR is not */
    bool removes;  /* names are removed here */
    uint32_t local_major; /* a device on which a cold name may be waited for, 0: none */
    uint32_t local_minor;
    int proc_self_fd; /* a directory; -1: attributes are changed by Python */
    uint64_t next_nodeid; /* of what is new, here or to Python */
    int32_t fd_limit;     /* descriptors of what is entered here are below; 0: nothing is */
    int32_t last_fd;      /* the last one that was to be entered */
    struct {
        uint32_t node, handle; /* rows */
    } fresh[UF_NEW];
    uint32_t fresh_count; /* of which Python has not been told */
    struct uf_making making;
    struct uf_valid entry;
    struct uf_valid attr;
};

/* 0, or -ENOMEM. */
int uf_nodes_enter(struct uf_nodes *t, uint64_t nodeid, int fd, uint64_t ino, uint32_t dev_major,
                   uint32_t dev_minor, uint64_t mnt_id);
/* Whether something new may be entered. */
bool uf_may_enter_new(const struct uf_nodes *t);
/* Enter a file that is new to the client, under a new node id, and tell Python in time; its
 * descriptor is the table's then. NULL if there is no memory. */
struct uf_node *uf_nodes_enter_new(struct uf_nodes *t, struct uf_node file);
/* Enter the handle of the file entered last, open at `fd` with those flags of a row; its fh. */
uint64_t uf_open_new(struct uf_nodes *t, struct uf_handles *handles, int fd, uint32_t flags);
/* Valid until something is entered; NULL if it is not there. Of `file` only counts what it is. */
struct uf_node *uf_find_node(const struct uf_nodes *t, uint64_t nodeid);
struct uf_node *uf_find_file(const struct uf_nodes *t, const struct uf_node *file);
void uf_nodes_leave(struct uf_nodes *t, uint64_t nodeid);
/* How often it was looked up since this was last asked. */
uint32_t uf_nodes_looked_up(struct uf_nodes *t, uint64_t nodeid);
void uf_nodes_clear(struct uf_nodes *t);
/* Put what was entered here before the `n` completions for Python: how many there are now. So it
 * knows of an inode before it is asked anything about it. */
int uf_tell_new(struct uf_nodes *t, struct uf_batch *out, int n);

#endif
