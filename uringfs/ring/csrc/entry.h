/* FUSE over io_uring: requests that come as completions of commands, and go as commands. See
 * entry.c. */
#ifndef URINGFS_ENTRY_H
#define URINGFS_ENTRY_H

#include "pump.h"

/* Completions that reach Python: the kernel refused an entry (res: -errno). */
#define UF_TAG_REFUSED 4u

#define UF_TAG_ENTRY 0x87u

/* Whether the requests of a slot come by io_uring; the slots below are for the device. */
static inline bool uf_is_entry(const struct uf_pump *p, uint32_t slot)
{
    return slot >= p->first_entry;
}

/* Hand the reply to the kernel, and the slot with it. */
void uf_entry_commit(struct uf_pump *p, uint32_t slot, const void *reply, uint32_t length);
/* The same as soon as the transfer that was queued last has succeeded in full. */
void uf_entry_chain(struct uf_pump *p, uint32_t slot, const void *reply, uint32_t length);
/* The transfer has: the kernel has the slot by now. */
void uf_entry_chained(struct uf_pump *p, uint32_t slot);
/* Take a command out of its chain, before the kernel has seen it. */
void uf_entry_unchain(struct uf_pump *p, uint32_t slot, struct io_uring_sqe *sqe);
/* Where the data of a WRITE can stay while its reply is where it was; NULL: there is no room. */
const uint8_t *uf_entry_set_aside(struct uf_pump *p, uint32_t slot, uint32_t size);
/* A command has completed: true if a request of *length bytes lies in its slot as it would if it
 * had been read from the device; false: the entry is no more, *refused if it never was one. */
bool uf_entry_take(struct uf_pump *p, uint32_t slot, int res, uint32_t *length, bool *refused);
/* Before a submission: hand on what there was no room for. */
void uf_entries_settle(struct uf_pump *p);
/* Before the last submission: have the kernel let go of all entries. */
void uf_entries_close(struct uf_pump *p);

int uf_pump_register(struct uf_pump *p, uint32_t queues);

#endif
