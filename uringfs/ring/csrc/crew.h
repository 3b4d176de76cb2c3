/* Which pumps of a device listen to it. See crew.c. */
#ifndef URINGFS_CREW_H
#define URINGFS_CREW_H

#include "pump.h"

#define UF_CREW_MOST 64
#define UF_CREW_LOOK_NS 5000000u

struct uf_crew {
    uint32_t count; /* the event loop's pump, which is always on duty, and lanes */
    uint32_t call_permille; /* so busy a thread calls another */
    uint32_t leave_permille; /* less busy for a while it leaves */
    uint32_t on_duty[UF_CREW_MOST];
    int ring_fd[UF_CREW_MOST];
};

/* Now and then, between completions: call another, or leave. */
void uf_crew_look(struct uf_pump *p);

#endif
