/* Requests that nobody waits for: FORGET, which has no answer, and RELEASE, whose answer the kernel
 * takes note of and no more (fuse_file_put(): in the background).
 *
 * They come when a client is about to ask for something else, which would have to wait while Python
 * is called for them. So they are put aside, in their slots, until Python is called anyway, and then
 * come behind what it is called for; or until there are several of them, or for a millisecond. But
 * who opens a file anew finds it closed: whether the kernel may have a backing file for it is for
 * the first open to decide. */
#include "late.h"

#include "entry.h"

#include <linux/fuse.h>
#include <string.h>

/* Others wait for the lock that goes with the file. */
static bool may_unlock(const struct uf_pump *p, const uint8_t *body)
{
    struct fuse_release_in arg;
    memcpy(&arg, body, sizeof(arg));
    return arg.release_flags & FUSE_RELEASE_FLOCK_UNLOCK || uf_has_locks(&p->handles);
}

/* An OPEN has come. */
static void note_open(struct uf_pump *p, uint64_t nodeid)
{
    for (uint32_t i = 0; i < p->late_count; i++)
        p->late_first |= p->late[i].closes == nodeid;
}

bool uf_put_aside(struct uf_pump *p, uint32_t slot, uint32_t length)
{
    struct fuse_in_header in;
    const uint8_t *body = uf_slot_data(p, slot) - UF_IN_SIZE + sizeof(in);
    memcpy(&in, body - sizeof(in), sizeof(in));
    uint32_t opcode = p->slots[slot].opcode;
    if (opcode == FUSE_OPEN)
        note_open(p, in.nodeid);
    bool closes = opcode == FUSE_RELEASE || opcode == FUSE_RELEASEDIR;
    bool forgets = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET;
    /* Of an entry's queue there may be no other; and half of few slots would be missed. */
    if (!p->defers || uf_is_entry(p, slot) || p->first_entry < 2 * UF_LATE || !(closes || forgets))
        return false;
    if (p->late_count == UF_LATE || (closes && may_unlock(p, body)))
        return false;
    if (!p->late_count)
        p->late_since_ns = p->now_ns;
    p->late[p->late_count++] =
        (struct uf_late){.slot = slot, .length = length, .closes = closes ? in.nodeid : 0};
    return true;
}

int uf_hand_over(struct uf_pump *p, struct uf_batch *out, int n, bool at_once)
{
    bool due = at_once || n || p->late_count == UF_LATE ||
               p->now_ns - p->late_since_ns >= UF_LATE_NS;
    if (!p->late_count || !due || n + UF_LATE > UF_BATCH)
        return n;
    uint32_t count = p->late_count, at = p->late_first ? 0 : (uint32_t)n;
    uf_make_room(out, (int)at, (int)count, n);
    for (uint32_t i = 0; i < count; i++, at++) {
        out->user_data[at] = (uint64_t)UF_TAG_REQUEST << UF_TAG_SHIFT | p->late[i].slot;
        out->res[at] = (int32_t)p->late[i].length;
        out->flags[at] = 0;
    }
    p->late_count = 0;
    p->late_first = false;
    return n + (int)count;
}
