/* What Python sees of csrc/meter.h: read before pump.h and virtqueue.h, which have it within. */

#define UF_OPCODES ...
#define UF_BUCKETS ...
#define UF_HEAD ...
#define UF_RECORDS ...

struct uf_record {
    uint64_t started_ns;
    uint64_t took_ns;
    int32_t error;
    uint32_t moved;
    uint8_t head[...];
};

struct uf_trace {
    uint64_t least_ns;
    uint64_t written;
    uint64_t taken;
    uint64_t lost;
    uint8_t *heads;
    struct uf_record records[...];
};

struct uf_meter {
    uint64_t latency[...][...];
    uint64_t spent_ns[...];
    uint64_t failed[...];
    uint64_t bytes_read;
    uint64_t bytes_written;
    struct uf_trace *trace;
};

void uf_meter_watch(struct uf_meter *m, struct uf_trace *trace);
uint64_t uf_trace_written(const struct uf_trace *t);
void uf_trace_took(struct uf_trace *t, uint64_t taken);
