/* Requests that nobody waits for, and that Python may have a little later: see late.c. */
#ifndef URINGFS_LATE_H
#define URINGFS_LATE_H

#include "pump.h"

/* Whether a request that was left to Python is put aside; `length` bytes are in its slot. */
bool uf_put_aside(struct uf_pump *p, uint32_t slot, uint32_t length);
/* Add to the `n` completions for Python what was put aside, if it is time: how many there are now.
 * `at_once`: it is. */
int uf_hand_over(struct uf_pump *p, struct uf_batch *out, int n, bool at_once);

#endif
