/* What Python sees of csrc/ring.c: read by cffi, so plain declarations only. */

struct iovec {
    void *iov_base;
    size_t iov_len;
};

struct __kernel_timespec {
    long long tv_sec;
    long long tv_nsec;
};

struct uf_pump;
struct uf_guest;

struct uf_ring {
    uint32_t features;
    uint32_t setup_flags;
    uint32_t sq_entries;
    uint32_t cq_entries;
    int fd;
    struct uf_pump *pump;
    struct uf_guest *guests;
    uint32_t transfers;
    uint64_t spin_ns;
    uint64_t spins;
    uint64_t spin_hits;
    uint8_t opcodes[256];
    ...;
};

/* A batch of completions, as three parallel arrays of UF_BATCH entries and UF_NEW besides. */
#define UF_BATCH ...
#define UF_NEW ...
#define UF_TAG_SHIFT ...
#define UF_TAG_IGNORE ...
struct uf_batch {
    uint64_t user_data[...];
    int32_t res[...];
    uint32_t flags[...];
};

void uf_switch(bool *flag, bool on);
int uf_ring_open(struct uf_ring *r, uint32_t entries, uint32_t cq_entries, uint32_t setup_flags);
int uf_ring_restrict(struct uf_ring *r, const uint8_t *opcodes, uint32_t count);
int uf_ring_enable(struct uf_ring *r);
void uf_ring_close(struct uf_ring *r);

int uf_push(struct uf_ring *r, uint64_t user_data, uint8_t opcode, uint8_t sqe_flags, int32_t fd,
            void *addr, uint32_t len, int64_t off, uint32_t op_flags, uint16_t buf_index,
            uint16_t personality, int32_t splice_fd_in, uint64_t addr3);
int uf_submit(struct uf_ring *r);
int uf_turn(struct uf_ring *r, int64_t timeout_ns, struct uf_batch *out);
int uf_peek(struct uf_ring *r, struct uf_batch *out);
bool uf_pending(struct uf_ring *r);
int uf_register_eventfd(struct uf_ring *r, int fd);
int uf_unregister_eventfd(struct uf_ring *r);

int uf_register_files_sparse(struct uf_ring *r, uint32_t count);
int uf_update_file(struct uf_ring *r, uint32_t slot, int fd);
int uf_register_buffers_sparse(struct uf_ring *r, uint32_t count);
int uf_update_buffer(struct uf_ring *r, uint32_t slot, void *base, size_t length);
int uf_register_personality(struct uf_ring *r);
int uf_unregister_personality(struct uf_ring *r, int id);
