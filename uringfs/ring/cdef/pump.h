/* What Python sees of csrc/pump.c. */

#define UF_TAG_REQUEST ...
#define UF_NO_SLOT ...
#define UF_TAG_REFUSED ...
#define UF_PAGE ...
#define UF_IN_SIZE ...
#define UF_WRITTEN ...

struct uf_handle {
    ...;
};

struct uf_handles {
    struct uf_handle *rows;
    uint32_t count;
    uint32_t flag_mask;
    uint16_t no_fsetid;
    uint32_t *moved_kib;
    uint32_t *written;
    ...;
};

struct uf_pump {
    struct uf_ring *ring;
    int device_fd;
    uint32_t device_file;
    uint8_t *memory;
    uint32_t slot_count;
    uint32_t slot_size;
    uint32_t max_transfer;
    uint32_t fixed_bytes;
    uint32_t fixed_base;
    bool fast;
    struct uf_handles handles;
    struct uf_nodes nodes;
    uint32_t first_entry;
    uint32_t queues;
    uint32_t entries;
    uint32_t held;
    bool over_io_uring;
    uint32_t offered;
    uint32_t spares;
    bool armed;
    struct uf_crew *crew;
    uint32_t number;
    bool off_duty;
    bool defers;
    uint64_t requests[...];
    uint64_t fast_requests[...];
    struct uf_meter meter;
    uint64_t starved;
    uint64_t refused;
    ...;
};

int uf_pump_open(struct uf_pump *p);
void uf_pump_close(struct uf_pump *p);
int uf_pump_start(struct uf_pump *p);
int uf_pump_stop(struct uf_pump *p);
int uf_pump_reply(struct uf_pump *p, uint32_t slot, uint32_t offset, uint32_t length);
int uf_pump_drop(struct uf_pump *p, uint32_t slot);
int uf_pump_interrupt(struct uf_pump *p, uint64_t unique);
uint32_t uf_pump_answer(struct uf_pump *p, const struct uf_pump *forwarder, uint32_t slot,
                        uint32_t length);
int uf_pump_register(struct uf_pump *p, uint32_t queues);
uint32_t uf_pump_waiting(const struct uf_pump *p, uint32_t *opcode, uint64_t *since_ns,
                         uint32_t room);
