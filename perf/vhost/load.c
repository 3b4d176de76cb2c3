/* A guest that does nothing but read or write one file, as fast as the daemon lets it.
 *
 *     load SOCKET NAME PATH BLOCK DEPTH WARMUP_S SECONDS [direct] [write] [sequential]
 *
 * It is front-end, virtqueue driver and FUSE client in one: it connects to a vhost-user-fs daemon as
 * QEMU does, lays its requests out as Linux' virtiofs does (headers, arguments and each page in a
 * descriptor of their own, indirect where offered), and sleeps until it is interrupted, as a guest
 * does. PATH is the file itself: what comes first through the daemon is compared with it.
 *
 * Prints JSON: operations, bytes, seconds, percentiles of latency in microseconds, and ``total``,
 * the operations with those of the warm-up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, ENTRIES = 1024, QUEUES = 2, REQUESTS = 1, HEADS = 4096 };
enum { MAX_DEPTH = 128, MAX_BLOCK = 1 << 20, MAX_CHAIN = MAX_BLOCK / PAGE + 4 };

/* vhost-user (QEMU's docs/interop/vhost-user.rst). */
enum {
    GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, SET_MEM_TABLE = 5, SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9, SET_VRING_BASE = 10, SET_VRING_KICK = 12, SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, SET_VRING_ENABLE = 18,
};
enum { F_PROTOCOL = 30, F_VERSION_1 = 32 };
static const uint64_t GUEST = 1ull << 32;

struct message {
    uint32_t request, flags, size;
    union {
        uint64_t number;
        struct vhost_state { uint32_t index, value; } state;
        struct { uint32_t index, flags; uint64_t table, used, avail, log; } address;
        struct { uint32_t count, padding; uint64_t guest, size, user, offset; } memory;
    };
} __attribute__((packed));

struct queue {
    struct vring ring;
    int kick, call;
    uint16_t avail, used;
};

/* A request under way: what the daemon reads, and what it writes, page-aligned data apart. */
struct slot {
    struct fuse_in_header in;
    union { struct fuse_read_in read; struct fuse_write_in write; } argument;
    struct fuse_out_header out;
    struct fuse_write_out written;
    struct vring_desc chain[MAX_CHAIN];
    uint64_t start;
    uint32_t done;
};

static struct {
    int socket;
    unsigned char *memory;
    size_t used;
    struct queue queues[QUEUES];
    struct slot *slots;
    unsigned char *data;
    uint64_t features, nodeid, fh, unique, random, next;
    uint64_t block, blocks;
    unsigned depth;
    bool direct, write, sequential;
} vm;

static struct {
    uint32_t *latencies;
    size_t count, room, total;
} seen;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void check(bool fine, const char *what)
{
    if (!fine)
        fail("%s: %s", what, strerror(errno));
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void *take(size_t size)
{
    void *found = vm.memory + vm.used;
    vm.used += (size + PAGE - 1) & ~(size_t)(PAGE - 1);
    return found;
}

static uint64_t guest(const void *place)
{
    return GUEST + (uint64_t)((const unsigned char *)place - vm.memory);
}

static void tell(struct message *message, uint32_t size, int fd)
{
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {0};
    struct iovec data = {message, 12 + size};
    struct msghdr head = {.msg_iov = &data, .msg_iovlen = 1};

    message->flags = 1, message->size = size;
    if (fd >= 0) {
        head.msg_control = control.space, head.msg_controllen = sizeof control.space;
        struct cmsghdr *first = CMSG_FIRSTHDR(&head);
        first->cmsg_level = SOL_SOCKET, first->cmsg_type = SCM_RIGHTS;
        first->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(first), &fd, sizeof fd);
    }
    check(sendmsg(vm.socket, &head, 0) == (ssize_t)data.iov_len, "sendmsg");
}

static void tell_number(uint32_t request, uint64_t number, int fd)
{
    struct message message = {.request = request, .number = number};
    tell(&message, 8, fd);
}

static void tell_state(uint32_t request, uint32_t index, uint32_t value)
{
    struct message message = {.request = request, .state = {index, value}};
    tell(&message, 8, -1);
}

static uint64_t ask_number(uint32_t request)
{
    struct message message = {.request = request};
    tell(&message, 0, -1);
    check(recv(vm.socket, &message, 20, MSG_WAITALL) == 20, "no answer on the socket");
    return message.number;
}

static void start_queue(unsigned index)
{
    struct queue *queue = &vm.queues[index];
    vring_init(&queue->ring, ENTRIES, take(vring_size(ENTRIES, PAGE)), PAGE);
    /* As QEMU makes them: a daemon's io_uring would have a thread write to one that may block. */
    queue->kick = eventfd(0, EFD_NONBLOCK), queue->call = eventfd(0, EFD_NONBLOCK);
    struct message message = {
        .request = SET_VRING_ADDR,
        .address = {
            .index = index, .table = (uintptr_t)queue->ring.desc,
            .used = (uintptr_t)queue->ring.used, .avail = (uintptr_t)queue->ring.avail,
        },
    };
    tell_state(SET_VRING_NUM, index, ENTRIES);
    tell_state(SET_VRING_BASE, index, 0);
    tell(&message, sizeof message.address, -1);
    tell_number(SET_VRING_KICK, index, queue->kick);
    tell_number(SET_VRING_CALL, index, queue->call);
    tell_state(SET_VRING_ENABLE, index, 1);
}

static void connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        fail("%s is too long for a socket", path);
    strcpy(address.sun_path, path);
    vm.socket = socket(AF_UNIX, SOCK_STREAM, 0);
    check(connect(vm.socket, (struct sockaddr *)&address, sizeof address) == 0, path);

    size_t size = QUEUES * (vring_size(ENTRIES, PAGE) + PAGE) + (1 << 20)
                  + vm.depth * (sizeof(struct slot) + vm.block + PAGE);
    size = (size + (2 << 20) - 1) & ~(size_t)((2 << 20) - 1);
    int memory = memfd_create("guest", 0);
    check(memory >= 0 && ftruncate(memory, size) == 0, "memfd");
    vm.memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory, 0);
    check(vm.memory != MAP_FAILED, "mmap");

    uint64_t offered = ask_number(GET_FEATURES);
    ask_number(GET_PROTOCOL_FEATURES);
    tell_number(SET_PROTOCOL_FEATURES, 0, -1);
    struct message owner = {.request = SET_OWNER};
    tell(&owner, 0, -1);
    vm.features = offered
                  & (1ull << F_VERSION_1 | 1ull << F_PROTOCOL | 1ull << VIRTIO_RING_F_INDIRECT_DESC
                     | 1ull << VIRTIO_RING_F_EVENT_IDX);
    tell_number(SET_FEATURES, vm.features, -1);
    struct message table = {
        .request = SET_MEM_TABLE,
        .memory = {.count = 1, .guest = GUEST, .size = size, .user = (uintptr_t)vm.memory},
    };
    tell(&table, sizeof table.memory, memory);
    for (unsigned index = 0; index < QUEUES; index++)
        start_queue(index);
    /* A kick before the queue is enabled may be lost: wait until all has been obeyed. */
    ask_number(GET_FEATURES);
}

/* Let the daemon know of chains, if it asked to be told (virtio 1.2, 2.7.10). */
static void publish(struct queue *queue, uint16_t count)
{
    uint16_t old = queue->avail, new = old + count;
    uint64_t one = 1;
    queue->avail = new;
    __atomic_store_n(&queue->ring.avail->idx, new, __ATOMIC_RELEASE);
    atomic_thread_fence(memory_order_seq_cst);
    bool wanted = vm.features >> VIRTIO_RING_F_EVENT_IDX & 1
                      ? vring_need_event(vring_avail_event(&queue->ring), new, old)
                      : !(queue->ring.used->flags & VRING_USED_F_NO_NOTIFY);
    if (wanted)
        check(write(queue->kick, &one, sizeof one) == sizeof one, "kick");
}

static uint16_t finished(struct queue *queue)
{
    return __atomic_load_n(&queue->ring.used->idx, __ATOMIC_ACQUIRE) - queue->used;
}

/* Sleep until the daemon has given something back. */
static void await_used(struct queue *queue)
{
    struct pollfd interrupt = {.fd = queue->call, .events = POLLIN};
    uint64_t calls;
    while (!finished(queue)) {
        vring_used_event(&queue->ring) = queue->used;
        atomic_thread_fence(memory_order_seq_cst);
        if (finished(queue))
            break;
        check(poll(&interrupt, 1, -1) == 1, "poll");
        check(read(queue->call, &calls, sizeof calls) == sizeof calls, "interrupt");
    }
}

static unsigned piece(struct vring_desc *chain, unsigned at, const void *place, uint32_t length,
                      uint16_t flags)
{
    chain[at] = (struct vring_desc){guest(place), length, flags, 0};
    return at + 1;
}

/* The chain of a request, at its slot's descriptors or behind one indirect one. */
static void offer(struct queue *queue, unsigned number, unsigned length, uint16_t place)
{
    struct slot *slot = &vm.slots[number];
    bool indirect = vm.features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
    unsigned head = indirect ? number : number * length;

    if (head + (indirect ? 1 : length) > ENTRIES)
        fail("the daemon has no indirect descriptors, and %u do not fit", head + length);
    for (unsigned at = 0; at + 1 < length; at++) {
        slot->chain[at].flags |= VRING_DESC_F_NEXT;
        slot->chain[at].next = at + 1 + (indirect ? 0 : head);
    }
    if (indirect)
        queue->ring.desc[head] = (struct vring_desc){
            guest(slot->chain), length * sizeof *slot->chain, VRING_DESC_F_INDIRECT, 0};
    else
        memcpy(queue->ring.desc + head, slot->chain, length * sizeof *slot->chain);
    queue->ring.avail->ring[place % ENTRIES] = head;
}

static void head_of(struct slot *slot, uint32_t opcode, uint32_t length)
{
    slot->in = (struct fuse_in_header){
        .len = sizeof slot->in + length, .opcode = opcode, .unique = vm.unique += 2,
        .nodeid = vm.nodeid, .pid = 1,
    };
}

/* One request and its answer, before the load begins. */
static void ask(uint32_t opcode, const void *argument, uint32_t size, void *answer, uint32_t room)
{
    struct queue *queue = &vm.queues[REQUESTS];
    struct slot *slot = vm.slots;
    unsigned length = 0;

    memset(vm.data, 0, PAGE);
    memcpy(vm.data, argument, size);
    head_of(slot, opcode, size);
    length = piece(slot->chain, length, &slot->in, sizeof slot->in, 0);
    length = piece(slot->chain, length, vm.data, size, 0);
    length = piece(slot->chain, length, &slot->out, sizeof slot->out, VRING_DESC_F_WRITE);
    length = piece(slot->chain, length, vm.data + HEADS / 2, room, VRING_DESC_F_WRITE);
    offer(queue, 0, length, queue->avail);
    publish(queue, 1);
    await_used(queue);
    queue->used++;
    if (slot->out.error)
        fail("opcode %u: %s", opcode, strerror(-slot->out.error));
    memcpy(answer, vm.data + HEADS / 2, room);
}

static void open_file(const char *name)
{
    int flags = (vm.write ? O_RDWR : O_RDONLY) | (vm.direct ? O_DIRECT : 0);
    struct fuse_init_in init = {
        .major = FUSE_KERNEL_VERSION, .minor = 36, .max_readahead = 1 << 17,
        .flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES
                 | FUSE_DO_READDIRPLUS | FUSE_ATOMIC_O_TRUNC,
    };
    struct fuse_open_in open_in = {.flags = flags};
    struct fuse_init_out ready;
    struct fuse_entry_out entry;
    struct fuse_open_out opened;

    ask(FUSE_INIT, &init, sizeof init, &ready, sizeof ready);
    vm.nodeid = FUSE_ROOT_ID;
    ask(FUSE_LOOKUP, name, strlen(name) + 1, &entry, sizeof entry);
    vm.nodeid = entry.nodeid;
    ask(FUSE_OPEN, &open_in, sizeof open_in, &opened, sizeof opened);
    vm.fh = opened.fh;
}

static uint64_t next_block(void)
{
    if (vm.sequential)
        return vm.next++ % vm.blocks;
    vm.random ^= vm.random << 13, vm.random ^= vm.random >> 7, vm.random ^= vm.random << 17;
    return vm.random % vm.blocks;
}

static void submit(unsigned number, uint16_t place, uint64_t start)
{
    struct slot *slot = &vm.slots[number];
    unsigned char *data = vm.data + number * vm.block;
    uint64_t offset = next_block() * vm.block;
    uint32_t flags = (vm.write ? O_RDWR : O_RDONLY) | (vm.direct ? O_DIRECT : 0);
    uint16_t way = vm.write ? 0 : VRING_DESC_F_WRITE;
    unsigned length = 0;

    if (vm.write)
        slot->argument.write = (struct fuse_write_in){
            .fh = vm.fh, .offset = offset, .size = vm.block, .flags = flags};
    else
        slot->argument.read = (struct fuse_read_in){
            .fh = vm.fh, .offset = offset, .size = vm.block, .flags = flags};
    head_of(slot, vm.write ? FUSE_WRITE : FUSE_READ, 40 + (vm.write ? vm.block : 0));
    slot->start = start;
    slot->out.error = 1;
    length = piece(slot->chain, length, &slot->in, sizeof slot->in, 0);
    length = piece(slot->chain, length, &slot->argument, 40, 0);
    if (!vm.write)
        length = piece(slot->chain, length, &slot->out, sizeof slot->out, way);
    for (uint64_t at = 0; at < vm.block; at += PAGE)
        length = piece(slot->chain, length, data + at,
                       vm.block - at < PAGE ? vm.block - at : PAGE, way);
    if (vm.write) {
        length = piece(slot->chain, length, &slot->out, sizeof slot->out, VRING_DESC_F_WRITE);
        length = piece(slot->chain, length, &slot->written, 8, VRING_DESC_F_WRITE);
    }
    slot->done = length;
    offer(&vm.queues[REQUESTS], number, length, place);
}

static unsigned slot_of(const struct vring_used_elem *element)
{
    bool indirect = vm.features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
    unsigned number = indirect ? element->id : element->id / vm.slots[0].done;
    uint32_t expected = vm.write ? 24 : 16 + vm.block;

    if (number >= vm.depth)
        fail("chain %u was never offered", element->id);
    if (vm.slots[number].out.error || vm.slots[number].out.len != expected)
        fail("request answered with %d, %u bytes", vm.slots[number].out.error,
             vm.slots[number].out.len);
    return number;
}

/* Read one block in each slot, and compare with the file itself. */
static void compare(const char *path)
{
    struct queue *queue = &vm.queues[REQUESTS];
    unsigned char *block = malloc(vm.block);
    bool write = vm.write;
    int fd = open(path, O_RDONLY);

    check(fd >= 0 && block, path);
    vm.write = false;
    for (unsigned number = 0; number < vm.depth; number++)
        submit(number, queue->avail + number, 0);
    publish(queue, vm.depth);
    for (unsigned left = vm.depth; left; left--, queue->used++) {
        await_used(queue);
        unsigned number = slot_of(&queue->ring.used->ring[queue->used % ENTRIES]);
        off_t offset = vm.slots[number].argument.read.offset;
        if (pread(fd, block, vm.block, offset) != (ssize_t)vm.block
            || memcmp(block, vm.data + number * vm.block, vm.block))
            fail("what the daemon gives at %lld is not what the file has", (long long)offset);
    }
    vm.write = write;
    close(fd);
    free(block);
}

static void note(uint64_t nanoseconds)
{
    if (seen.count == seen.room) {
        seen.room = seen.room ? 2 * seen.room : 1 << 20;
        seen.latencies = realloc(seen.latencies, seen.room * sizeof *seen.latencies);
        check(seen.latencies != NULL, "realloc");
    }
    seen.latencies[seen.count++] = nanoseconds > UINT32_MAX ? UINT32_MAX : nanoseconds;
}

/* As many under way as the depth says, until the time is over; seconds that counted. */
static double load(double warmup, double seconds)
{
    struct queue *queue = &vm.queues[REQUESTS];
    uint64_t begin = now() + (uint64_t)(warmup * 1e9), end = begin + (uint64_t)(seconds * 1e9);
    uint64_t time = now(), from = 0;

    for (unsigned number = 0; number < vm.depth; number++)
        submit(number, queue->avail + number, time);
    publish(queue, vm.depth);
    for (unsigned left = vm.depth; left;) {
        uint16_t again = 0;
        await_used(queue);
        time = now();
        if (!from && time >= begin)
            from = time;
        for (uint16_t count = finished(queue); count; count--, queue->used++) {
            unsigned number = slot_of(&queue->ring.used->ring[queue->used % ENTRIES]);
            seen.total++;
            if (from && time < end)
                note(time - vm.slots[number].start);
            if (time < end)
                submit(number, queue->avail + again++, time);
            else
                left--;
        }
        if (again)
            publish(queue, again);
    }
    return ((time < end ? time : end) - from) / 1e9;
}

static int ascending(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return a < b ? -1 : a > b;
}

static double percentile(double share)
{
    return seen.latencies[(size_t)(share * (seen.count - 1))] / 1e3;
}

int main(int argc, char **argv)
{
    struct stat status;

    if (argc < 8)
        fail("usage: load SOCKET NAME PATH BLOCK DEPTH WARMUP_S SECONDS [direct] [write] "
             "[sequential]");
    for (int at = 8; at < argc; at++) {
        vm.direct |= !strcmp(argv[at], "direct");
        vm.write |= !strcmp(argv[at], "write");
        vm.sequential |= !strcmp(argv[at], "sequential");
    }
    vm.block = strtoul(argv[4], NULL, 10), vm.depth = strtoul(argv[5], NULL, 10);
    if (!vm.block || vm.block > MAX_BLOCK || !vm.depth || vm.depth > MAX_DEPTH)
        fail("blocks are up to %d bytes, depths up to %d", MAX_BLOCK, MAX_DEPTH);
    check(stat(argv[3], &status) == 0, argv[3]);
    vm.blocks = status.st_size / vm.block;
    vm.random = now() | 1;
    if (!vm.blocks)
        fail("%s is shorter than a block", argv[3]);

    connect_to(argv[1]);
    vm.slots = take(vm.depth * sizeof *vm.slots);
    vm.data = take(vm.depth * vm.block + PAGE);
    open_file(argv[2]);
    compare(argv[3]);
    double seconds = load(atof(argv[6]), atof(argv[7]));
    if (!seen.count)
        fail("nothing came back in time");
    qsort(seen.latencies, seen.count, sizeof *seen.latencies, ascending);
    printf("{\"operations\": %zu, \"bytes\": %llu, \"seconds\": %f, \"p50\": %.2f, \"p99\": %.2f, "
           "\"p999\": %.2f, \"total\": %zu}\n",
           seen.count, (unsigned long long)seen.count * vm.block, seconds, percentile(.5),
           percentile(.99), percentile(.999), seen.total + vm.depth);
    return 0;
}
