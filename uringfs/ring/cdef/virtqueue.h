/* What Python sees of csrc/virtqueue.c. */

#define UF_TAG_GUEST ...
#define UF_QUEUES ...
#define UF_QUEUE_SIZE ...

struct uf_region {
    uint64_t guest;
    uint64_t size;
    uint8_t *at;
};

struct uf_vring {
    bool taking;
    bool started;
    bool event_idx;
    bool indirect;
    uint32_t size;
    const uint8_t *table;
    const uint16_t *avail;
    uint8_t *used;
    int kick_fd;
    int call_fd;
    uint64_t log_used;
    uint8_t *inflight;
    uint64_t counter;
    uint16_t next;
    uint32_t under_way;
    uint32_t resumed;
    uint16_t resume[...];
    ...;
};

struct uf_chain {
    uint32_t opcode;
    uint32_t readable;
    uint32_t pieces;
    uint16_t head;
    uint16_t queue;
    struct iovec piece[...];
    ...;
};

struct uf_guest {
    struct uf_ring *ring;
    uint32_t serial;
    struct uf_region *regions;
    uint32_t region_count;
    struct uf_vring queue[...];
    struct uf_chain *chains;
    uint32_t chain_count;
    uint32_t transfers;
    bool fast;
    bool polls;
    struct uf_handles handles;
    uint8_t *log;
    uint64_t log_size;
    uint64_t broken;
    const char *fault[...];
    uint64_t fast_requests[...];
    struct uf_meter meter;
    ...;
};

int uf_guest_open(struct uf_guest *g);
void uf_guest_close(struct uf_guest *g);
int uf_guest_start(struct uf_guest *g, uint32_t queue);
int uf_guest_stop(struct uf_guest *g, uint32_t queue);
uint32_t uf_guest_take(struct uf_guest *g, uint32_t *chains, uint32_t room);
int uf_guest_finish(struct uf_guest *g, uint32_t chain, uint32_t written);
int uf_guest_give(struct uf_guest *g, uint32_t queue, uint16_t head, uint32_t written);
int uf_guest_cancel(struct uf_guest *g);
bool uf_guests_ask(struct uf_ring *r);
