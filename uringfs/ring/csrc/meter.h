/* What is measured of requests that were served, by who serves them. */
#ifndef URINGFS_METER_H
#define URINGFS_METER_H

#include <linux/fuse.h>
#include <string.h>

#include "ring.h"

#define UF_BUCKETS 40u
#define UF_HEAD 192u     /* bytes of a message that are told: headers, arguments, the start of names */
#define UF_RECORDS 8192u /* that are kept until Python takes them */

/* A request that was served, for who wants to know of each. */
struct uf_record {
    uint64_t started_ns; /* CLOCK_MONOTONIC */
    uint64_t took_ns;
    int32_t error;  /* of the reply: 0 or -errno */
    uint32_t moved; /* bytes that the reply brings, or says were taken */
    uint8_t head[UF_HEAD];
};

/* There only while somebody wants to know: without it a request costs two looks at a pointer. */
struct uf_trace {
    uint64_t least_ns; /* requests that took less are not told */
    uint64_t written;  /* records, ever; by who serves */
    uint64_t taken;    /* by who reads them, maybe in another thread */
    uint64_t lost;  /* ever, since there was no room */
    uint8_t *heads; /* of requests under way; all 0: it was there before the trace */
    struct uf_record records[UF_RECORDS];
};

struct uf_meter {
    uint64_t latency[UF_OPCODES][UF_BUCKETS]; /* bucket b: 2^b to 2^(b+1) nanoseconds */
    uint64_t spent_ns[UF_OPCODES];
    uint64_t failed[UF_OPCODES];
    uint64_t bytes_read;
    uint64_t bytes_written;
    struct uf_trace *trace;
};

static inline struct uf_trace *uf_meter_trace(struct uf_meter *m)
{
    return __atomic_load_n(&m->trace, __ATOMIC_ACQUIRE);
}

/* Trace from now on, or no more; who serves may be at it in another thread. */
static inline void uf_meter_watch(struct uf_meter *m, struct uf_trace *trace)
{
    __atomic_store_n(&m->trace, trace, __ATOMIC_RELEASE);
}

static inline uint64_t uf_trace_written(const struct uf_trace *t)
{
    return __atomic_load_n(&t->written, __ATOMIC_ACQUIRE);
}

static inline void uf_trace_took(struct uf_trace *t, uint64_t taken)
{
    __atomic_store_n(&t->taken, taken, __ATOMIC_RELEASE);
}

/* A request has come; `at` is its number among those under way. */
static inline void uf_meter_begin(struct uf_meter *m, uint32_t at, const void *message,
                                  uint32_t length)
{
    struct uf_trace *trace = uf_meter_trace(m);
    if (!trace)
        return;
    uint8_t *head = trace->heads + (size_t)at * UF_HEAD;
    uint32_t kept = length < UF_HEAD ? length : UF_HEAD;
    memcpy(head, message, kept);
    memset(head + kept, 0, UF_HEAD - kept);
}

static inline void uf_trace_end(struct uf_trace *t, uint32_t at, const struct uf_record *end)
{
    uint8_t *head = t->heads + (size_t)at * UF_HEAD;
    struct fuse_in_header *in = (struct fuse_in_header *)head;
    if (end->took_ns < t->least_ns || !in->len)
        return;
    if (t->written - __atomic_load_n(&t->taken, __ATOMIC_ACQUIRE) == UF_RECORDS) {
        t->lost++;
        return;
    }
    struct uf_record *r = &t->records[t->written % UF_RECORDS];
    *r = *end;
    memcpy(r->head, head, UF_HEAD);
    __atomic_store_n(&t->written, t->written + 1, __ATOMIC_RELEASE);
    in->len = 0;
}

/* It has been answered. */
static inline void uf_meter_end(struct uf_meter *m, uint32_t at, uint32_t opcode,
                                uint64_t started_ns, uint64_t now_ns, int error, uint32_t moved)
{
    uint64_t ns = now_ns > started_ns ? now_ns - started_ns : 1;
    unsigned bucket = 63u - (unsigned)__builtin_clzll(ns);
    m->latency[opcode][bucket < UF_BUCKETS ? bucket : UF_BUCKETS - 1]++;
    m->spent_ns[opcode] += ns;
    if (error)
        m->failed[opcode]++;
    else if (opcode == FUSE_READ)
        m->bytes_read += moved;
    else if (opcode == FUSE_WRITE)
        m->bytes_written += moved;
    struct uf_trace *trace = uf_meter_trace(m);
    if (trace)
        uf_trace_end(trace, at,
                     &(struct uf_record){.started_ns = started_ns, .took_ns = ns,
                                         .error = error, .moved = moved});
}

#endif
