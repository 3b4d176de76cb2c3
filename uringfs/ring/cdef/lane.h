/* What Python sees of csrc/lane.c. */

#define UF_TAG_FORWARDED ...
#define UF_TAG_UNSENT ...
#define UF_LANE_ENDED ...

enum uf_order {
    UF_ORDER_REPLY,
    UF_ORDER_DROP,
    UF_ORDER_CANCEL,
    UF_ORDER_LISTEN,
    UF_ORDER_STOP,
    UF_ORDER_END,
    ...
};

struct uf_ring;
struct uf_pump;

struct uf_lane {
    struct uf_pump *pump;
    int home_fd;
    uint32_t number;
    ...;
};

int uf_lane_start(struct uf_lane *lane);
int uf_lane_join(struct uf_lane *lane);
int uf_lane_order(struct uf_ring *home, const struct uf_lane *lane, uint32_t order, uint32_t slot,
                  uint32_t offset, uint32_t res);
uint64_t uf_lane_passes(struct uf_lane *lane);
bool uf_lane_is_past(struct uf_lane *lane, uint64_t passes);
