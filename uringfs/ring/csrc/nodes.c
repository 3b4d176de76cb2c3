/* The table of inodes: by node id, and by what they are (device, mount, inode number). A row stands
 * for a file that is open, so its inode number cannot have come to mean another.
 *
 * Python enters inodes here, and C those of files that it found to be new, by node ids which both
 * take from one counter. Of these Python is told before it does anything else. */
#include "nodes.h"

#include <errno.h>
#include <stdlib.h>

#define UF_LEAST_ROOM 1024u

static uint32_t mixed(uint64_t key)
{
    return (uint32_t)(key * 0x9e3779b97f4a7c15u >> 32);
}

static uint32_t *nodeid_head(const struct uf_nodes *t, uint64_t nodeid)
{
    return &t->by_nodeid[mixed(nodeid) & (t->room - 1)];
}

static uint32_t *file_head(const struct uf_nodes *t, uint64_t ino, uint64_t mnt_id)
{
    return &t->by_file[mixed(ino ^ mnt_id << 48) & (t->room - 1)];
}

static void chain_up(struct uf_nodes *t, uint32_t row)
{
    struct uf_node *n = &t->rows[row];
    uint32_t *head = nodeid_head(t, n->nodeid);
    n->next_by_nodeid = *head;
    *head = row;
    head = file_head(t, n->ino, n->mnt_id);
    n->next_by_file = *head;
    *head = row;
}

/* Called when every row is in use. */
static int grow(struct uf_nodes *t)
{
    uint32_t room = t->room ? t->room * 2 : UF_LEAST_ROOM;
    struct uf_node *rows = room ? realloc(t->rows, room * sizeof(*rows)) : NULL;
    if (!rows)
        return -ENOMEM;
    t->rows = rows;
    uint32_t *heads = calloc(2 * (size_t)room, sizeof(*heads));
    if (!heads)
        return -ENOMEM;
    free(t->by_nodeid);
    t->by_nodeid = heads;
    t->by_file = heads + room;
    t->room = room;
    for (uint32_t row = 1; row < t->used; row++)
        chain_up(t, row);
    return 0;
}

struct uf_node *uf_find_node(const struct uf_nodes *t, uint64_t nodeid)
{
    uint32_t row = t->room ? *nodeid_head(t, nodeid) : 0;
    while (row && t->rows[row].nodeid != nodeid)
        row = t->rows[row].next_by_nodeid;
    return row ? &t->rows[row] : NULL;
}

struct uf_node *uf_find_file(const struct uf_nodes *t, const struct uf_node *file)
{
    uint32_t row = t->room ? *file_head(t, file->ino, file->mnt_id) : 0;
    for (; row; row = t->rows[row].next_by_file) {
        struct uf_node *n = &t->rows[row];
        if (n->ino == file->ino && n->mnt_id == file->mnt_id && n->dev_major == file->dev_major &&
            n->dev_minor == file->dev_minor)
            return n;
    }
    return NULL;
}

/* The row, or 0 if there is no memory for it. */
static uint32_t enter_row(struct uf_nodes *t, struct uf_node node)
{
    uint32_t row = t->free;
    if (row) {
        t->free = t->rows[row].next_by_nodeid;
    } else {
        if (t->used == t->room && grow(t) < 0)
            return 0;
        t->used += !t->used;
        row = t->used++;
    }
    t->rows[row] = node;
    t->count++;
    chain_up(t, row);
    return row;
}

int uf_nodes_enter(struct uf_nodes *t, uint64_t nodeid, int fd, uint64_t ino, uint32_t dev_major,
                   uint32_t dev_minor, uint64_t mnt_id)
{
    struct uf_node node = {.nodeid = nodeid, .ino = ino, .mnt_id = mnt_id,
                           .dev_major = dev_major, .dev_minor = dev_minor, .fd = fd};
    return enter_row(t, node) ? 0 : -ENOMEM;
}

/* Numbers of descriptors are the lowest that are free, so the last tells of the next. */
bool uf_may_enter_new(const struct uf_nodes *t)
{
    return t->last_fd < t->fd_limit && t->count < t->most && t->fresh_count < UF_NEW;
}

struct uf_node *uf_nodes_enter_new(struct uf_nodes *t, struct uf_node file)
{
    file.nodeid = t->next_nodeid;
    uint32_t row = enter_row(t, file);
    if (!row)
        return NULL;
    t->next_nodeid++;
    t->fresh[t->fresh_count].node = row;
    t->fresh[t->fresh_count++].handle = 0;
    return &t->rows[row];
}

uint64_t uf_open_new(struct uf_nodes *t, struct uf_handles *handles, int fd, uint32_t flags)
{
    uint64_t fh = t->making.fhs[--t->making.fh_count];
    struct uf_handle *h = &handles->rows[(uint32_t)fh];
    uint32_t last = t->fresh_count - 1;
    t->fresh[last].handle = (uint32_t)fh;
    __atomic_store_n(&h->opened, (uint32_t)fd | (uint64_t)flags << 32, __ATOMIC_RELAXED);
    __atomic_store_n(&h->fh, fh, __ATOMIC_RELAXED);
    __atomic_store_n(&h->nodeid, t->rows[t->fresh[last].node].nodeid, __ATOMIC_RELEASE);
    return fh;
}

int uf_tell_new(struct uf_nodes *t, struct uf_batch *out, int n)
{
    int count = (int)t->fresh_count;
    uf_make_room(out, 0, count, n);
    for (int i = 0; i < count; i++) {
        out->user_data[i] = (uint64_t)UF_TAG_NEW << UF_TAG_SHIFT | t->fresh[i].node;
        out->res[i] = (int32_t)t->fresh[i].handle;
        out->flags[i] = 0;
    }
    t->fresh_count = 0;
    return n + count;
}

void uf_nodes_leave(struct uf_nodes *t, uint64_t nodeid)
{
    struct uf_node *n = uf_find_node(t, nodeid);
    if (!n)
        return;
    uint32_t row = (uint32_t)(n - t->rows), *at = nodeid_head(t, nodeid);
    while (*at != row)
        at = &t->rows[*at].next_by_nodeid;
    *at = n->next_by_nodeid;
    at = file_head(t, n->ino, n->mnt_id);
    while (*at != row)
        at = &t->rows[*at].next_by_file;
    *at = n->next_by_file;
    n->next_by_nodeid = t->free;
    t->free = row;
    t->count--;
}

uint32_t uf_nodes_looked_up(struct uf_nodes *t, uint64_t nodeid)
{
    struct uf_node *n = uf_find_node(t, nodeid);
    uint32_t times = n ? n->looked_up : 0;
    if (n)
        n->looked_up = 0;
    return times;
}

void uf_nodes_clear(struct uf_nodes *t)
{
    free(t->rows);
    free(t->by_nodeid);
    t->rows = NULL;
    t->by_nodeid = t->by_file = NULL;
    t->room = t->used = t->free = t->count = t->fresh_count = 0;
    t->fd_limit = t->last_fd = 0;
    t->making = (struct uf_making){0};
}
