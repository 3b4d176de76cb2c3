/* Requests that nobody waits for: FORGET, which has no answer, and RELEASE, whose answer the kernel
 * takes note of and no more (fuse_file_put(): in the background).
 *
 * They come when a client is about to ask for something else, which would have to wait while Python
 * is called for them. So they are put aside, in their slots, until Python is called anyway, and then
 * come behind what it is called for; or until there are several of them, or for a millisecond. */
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

bool uf_put_aside(struct uf_pump *p, uint32_t slot, uint32_t length)
{
    const uint8_t *body = uf_slot_data(p, slot) - UF_IN_SIZE + sizeof(struct fuse_in_header);
    uint32_t opcode = p->slots[slot].opcode;
    bool closes = opcode == FUSE_RELEASE || opcode == FUSE_RELEASEDIR;
    bool forgets = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET;
    /* Of an entry's queue there may be no other; and half of few slots would be missed. */
    if (!p->defers || uf_is_entry(p, slot) || p->first_entry < 2 * UF_LATE || !(closes || forgets))
        return false;
    if (p->late_count == UF_LATE || (closes && may_unlock(p, body)))
        return false;
    if (!p->late_count)
        p->late_since_ns = p->now_ns;
    p->late[p->late_count++] = (struct uf_late){.slot = slot, .length = length};
    return true;
}

int uf_hand_over(struct uf_pump *p, struct uf_batch *out, int n, bool at_once)
{
    bool due = at_once || n || p->late_count == UF_LATE ||
               p->now_ns - p->late_since_ns >= UF_LATE_NS;
    if (!p->late_count || !due || n + UF_LATE > UF_BATCH)
        return n;
    for (uint32_t i = 0; i < p->late_count; i++, n++) {
        out->user_data[n] = (uint64_t)UF_TAG_REQUEST << UF_TAG_SHIFT | p->late[i].slot;
        out->res[n] = (int32_t)p->late[i].length;
        out->flags[n] = 0;
    }
    p->late_count = 0;
    return n;
}
