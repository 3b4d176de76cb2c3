/* What Python sees of csrc/nodes.c: read before pump.h, which has it within. */

struct uf_valid {
    uint64_t seconds[...];
    uint32_t nanoseconds[...];
};

#define UF_TAG_NEW ...

struct uf_node {
    uint64_t nodeid;
    uint64_t ino;
    uint64_t mnt_id;
    uint32_t dev_major;
    uint32_t dev_minor;
    int32_t fd;
    uint32_t mode;
    ...;
};

struct uf_making {
    uint32_t open_flags;
    uint32_t traits[...];
    uint32_t fopen[...];
    bool for_root;
    uint64_t fhs[...];
    uint32_t fh_count;
    ...;
};

struct uf_nodes {
    struct uf_node *rows;
    uint64_t next_nodeid;
    int32_t fd_limit;
    uint32_t most;
    struct uf_making making;
    bool looks_up;
    bool removes;
    uint32_t local_major;
    uint32_t local_minor;
    int proc_self_fd;
    struct uf_valid entry;
    struct uf_valid attr;
    ...;
};

int uf_nodes_enter(struct uf_nodes *t, uint64_t nodeid, int fd, uint64_t ino, uint32_t dev_major,
                   uint32_t dev_minor, uint64_t mnt_id);
void uf_nodes_leave(struct uf_nodes *t, uint64_t nodeid);
uint32_t uf_nodes_looked_up(struct uf_nodes *t, uint64_t nodeid);
void uf_nodes_clear(struct uf_nodes *t);
