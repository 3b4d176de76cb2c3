/* Metadata without Python, as far as there is nothing to decide: the attributes of an inode that the
 * client knows, changes of them but for the size, names, and the removal of a name; and new files.
 *
 * What would keep others waiting for a disk is left to Python. */
#include "metadata.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef RESOLVE_CACHED
#define RESOLVE_CACHED 0x20 /* Linux 5.12 */
#endif
#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000u
#endif
#define UF_STATX_MASK (STATX_BASIC_STATS | STATX_MNT_ID)
#define UF_SLOW_NS 100000u /* what takes that long has waited for something */
#define UF_CAUTION 16u    /* lookups */

/* linux/stat.h and sys/stat.h cannot both be had; glibc's struct statx may lack the mount id. */
struct statx_of_5_8 {
    uint32_t mask, blksize;
    uint64_t attributes;
    uint32_t nlink, uid, gid;
    uint16_t mode, padding;
    uint64_t ino, size, blocks, attributes_mask;
    struct { int64_t sec; uint32_t nsec; int32_t padding; } atime, btime, ctime, mtime;
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    uint64_t mnt_id, reserved[13];
};
_Static_assert(sizeof(struct statx_of_5_8) == 256, "struct statx of linux/stat.h");

static int stat_of(int fd, struct statx_of_5_8 *st)
{
    long rc = syscall(__NR_statx, fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, UF_STATX_MASK, st);
    return rc < 0 ? -errno : 0;
}

/* As the kernel's new_encode_dev(). */
static uint32_t encode_dev(uint32_t major, uint32_t minor)
{
    return (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12;
}

static struct fuse_attr attr_of(const struct statx_of_5_8 *st)
{
    return (struct fuse_attr){
        .ino = st->ino,
        .size = st->size,
        .blocks = st->blocks,
        .atime = (uint64_t)st->atime.sec,
        .mtime = (uint64_t)st->mtime.sec,
        .ctime = (uint64_t)st->ctime.sec,
        .atimensec = st->atime.nsec,
        .mtimensec = st->mtime.nsec,
        .ctimensec = st->ctime.nsec,
        .mode = st->mode,
        .nlink = st->nlink,
        .uid = st->uid,
        .gid = st->gid,
        .rdev = encode_dev(st->rdev_major, st->rdev_minor),
        .blksize = st->blksize,
    };
}

static bool is_plain_name(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

static int open_beneath(int dir_fd, const char *name, uint64_t flags, uint64_t mode,
                        uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_NOFOLLOW | O_CLOEXEC, .mode = mode,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | resolve};
    long fd = syscall(__NR_openat2, dir_fd, name, &how, sizeof(how));
    return fd < 0 ? -errno : (int)fd;
}

static int open_path(int dir_fd, const char *name, uint64_t resolve)
{
    return open_beneath(dir_fd, name, O_PATH, 0, resolve);
}

static bool is_local(const struct uf_nodes *t, const struct uf_node *directory)
{
    return (t->local_major || t->local_minor) && directory->dev_major == t->local_major &&
           directory->dev_minor == t->local_minor;
}

bool uf_is_local(const struct uf_nodes *t, uint64_t nodeid)
{
    struct uf_node *n = uf_find_node(t, nodeid);
    return n && is_local(t, n);
}

static bool may_wait(struct uf_nodes *t, const struct uf_node *directory)
{
    if (t->cautious) {
        t->cautious--;
        return false;
    }
    return is_local(t, directory);
}

/* The file under a name: an O_PATH descriptor or -errno, EAGAIN if it may take long to tell.
 *
 * A name that is not in the kernel's caches may be one that nobody has made yet, of a directory in
 * memory, or one on a disk. It is not waited for while others would have to wait as well, nor for
 * some time after one took long, nor where it is a server that would be waited for. */
static int find_name(struct uf_nodes *t, const struct uf_node *directory, const char *name,
                     bool alone)
{
    int fd = open_path(directory->fd, name, RESOLVE_CACHED);
    if (fd != -EAGAIN || !alone || !may_wait(t, directory))
        return fd;
    uint64_t start = uf_clock_ns();
    fd = open_path(directory->fd, name, 0);
    if (uf_clock_ns() - start > UF_SLOW_NS)
        t->cautious = UF_CAUTION;
    return fd;
}

/* Whether a name is all that follows a request's header and so many bytes of arguments. */
static bool is_one_name(const struct fuse_in_header *in, size_t arguments, const char *name)
{
    size_t before = sizeof(*in) + arguments, length = in->len - before;
    return in->len > before && memchr(name, 0, length) == name + length - 1;
}

static struct uf_node node_of(int fd, const struct statx_of_5_8 *st)
{
    return (struct uf_node){.fd = fd, .ino = st->ino, .mnt_id = st->mnt_id,
                            .dev_major = st->dev_major, .dev_minor = st->dev_minor,
                            .mode = st->mode};
}

/* The inode of what was found by name, which is counted as looked up; NULL leaves it to Python.
 * `fd` is kept or closed. */
static struct uf_node *found(struct uf_nodes *t, bool tells, int fd, struct statx_of_5_8 *st)
{
    struct uf_node *n = NULL;
    if (stat_of(fd, st) == 0) {
        struct uf_node file = node_of(fd, st);
        t->last_fd = fd;
        n = uf_find_file(t, &file);
        if (!n)
            n = tells && uf_may_enter_new(t) ? uf_nodes_enter_new(t, file) : NULL;
        else if (n->looked_up < UINT32_MAX)
            n->looked_up++;
        else
            n = NULL;
    }
    if (!n || n->fd != fd)
        close(fd);
    return n;
}

static struct fuse_entry_out entry_of(const struct uf_nodes *t, uint64_t nodeid,
                                      const struct statx_of_5_8 *st)
{
    int kind = S_ISDIR(st->mode);
    return (struct fuse_entry_out){
        .nodeid = nodeid,
        .entry_valid = t->entry.seconds[kind],
        .entry_valid_nsec = t->entry.nanoseconds[kind],
        .attr_valid = t->attr.seconds[kind],
        .attr_valid_nsec = t->attr.nanoseconds[kind],
        .attr = attr_of(st),
    };
}

static int look_up(struct uf_nodes *t, unsigned how, const struct fuse_in_header *in,
                   const char *name, void *body)
{
    if (!is_one_name(in, 0, name))
        return 0;
    struct uf_node *directory = t->looks_up ? uf_find_node(t, in->nodeid) : NULL;
    if (!directory || !is_plain_name(name))
        return 0;
    int fd = find_name(t, directory, name, how & UF_ALONE);
    if (fd < 0)
        return fd == -ENOENT ? fd : 0;
    struct statx_of_5_8 st;
    struct uf_node *n = found(t, how & UF_TELLS, fd, &st);
    if (!n)
        return 0;
    struct fuse_entry_out out = entry_of(t, n->nodeid, &st);
    memcpy(body, &out, sizeof(out));
    return (int)sizeof(out);
}

/* `fd`: the open file that is asked for, or -1. */
static int attr_reply(const struct uf_nodes *t, uint64_t nodeid, int fd, void *body)
{
    struct uf_node *n = uf_find_node(t, nodeid);
    if (!n)
        return 0;
    struct statx_of_5_8 st;
    int rc = stat_of(fd < 0 ? n->fd : fd, &st);
    if (rc < 0)
        return rc;
    int kind = S_ISDIR(st.mode);
    struct fuse_attr_out out = {.attr_valid = t->attr.seconds[kind],
                                .attr_valid_nsec = t->attr.nanoseconds[kind],
                                .attr = attr_of(&st)};
    memcpy(body, &out, sizeof(out));
    return (int)sizeof(out);
}

/* chmod(2), chown(2), utimensat(2), in that order: 0 or -errno. By way of /proc, which leads to what
 * the descriptor stands for, be it a symbolic link. */
static int change_attr(int proc_self_fd, int fd, const struct fuse_setattr_in *change)
{
    uint32_t valid = change->valid;
    char name[16];
    snprintf(name, sizeof(name), "%d", fd);
    if (valid & FATTR_MODE && fchmodat(proc_self_fd, name, change->mode & 07777, 0) < 0)
        return -errno;
    uid_t uid = valid & FATTR_UID ? change->uid : (uid_t)-1;
    gid_t gid = valid & FATTR_GID ? change->gid : (gid_t)-1;
    if (valid & (FATTR_UID | FATTR_GID) && fchownat(proc_self_fd, name, uid, gid, 0) < 0)
        return -errno;
    if (!(valid & (FATTR_ATIME | FATTR_MTIME)))
        return 0;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
    if (valid & FATTR_ATIME)
        times[0] = valid & FATTR_ATIME_NOW
                       ? (struct timespec){.tv_nsec = UTIME_NOW}
                       : (struct timespec){(time_t)change->atime, change->atimensec};
    if (valid & FATTR_MTIME)
        times[1] = valid & FATTR_MTIME_NOW
                       ? (struct timespec){.tv_nsec = UTIME_NOW}
                       : (struct timespec){(time_t)change->mtime, change->mtimensec};
    return utimensat(proc_self_fd, name, times, 0) < 0 ? -errno : 0;
}

static int get_attr(const struct uf_nodes *t, struct uf_handles *handles,
                    const struct fuse_in_header *in, const void *body, void *out)
{
    struct fuse_getattr_in arg;
    memcpy(&arg, body, sizeof(arg));
    if (in->len != sizeof(*in) + sizeof(arg))
        return 0;
    const struct uf_handle *h = NULL;
    if (arg.getattr_flags & FUSE_GETATTR_FH && arg.fh) {
        h = uf_find_handle(handles, arg.fh, in->nodeid, UF_HANDLE_FAST | UF_HANDLE_LIST);
        if (!h)
            return 0;
    }
    return attr_reply(t, in->nodeid, h ? h->fd : -1, out);
}

/* Nobody is known by -1, which would mean "leave it" to chown(2): Python says what comes of it. */
static int set_attr(const struct uf_nodes *t, const struct fuse_in_header *in, const void *body,
                    void *out)
{
    struct fuse_setattr_in arg;
    memcpy(&arg, body, sizeof(arg));
    if (in->len != sizeof(*in) + sizeof(arg) || in->uid == UINT32_MAX || in->gid == UINT32_MAX)
        return 0;
    struct uf_node *n = uf_find_node(t, in->nodeid);
    if (!n || t->proc_self_fd < 0 || arg.valid & FATTR_SIZE)
        return 0;
    int rc = change_attr(t->proc_self_fd, n->fd, &arg);
    return rc < 0 ? rc : attr_reply(t, in->nodeid, -1, out);
}

/* It may take a disk, so it is done here only as long as nobody else would have to wait. */
static int remove_name(const struct uf_nodes *t, unsigned how, const struct fuse_in_header *in,
                       const char *name)
{
    if (!t->removes || !(how & UF_ALONE) || !is_one_name(in, 0, name) || !is_plain_name(name))
        return 0;
    struct uf_node *directory = uf_find_node(t, in->nodeid);
    if (!directory || !is_local(t, directory))
        return 0;
    int flags = in->opcode == FUSE_RMDIR ? AT_REMOVEDIR : 0;
    return unlinkat(directory->fd, name, flags) < 0 ? -errno : UF_DONE;
}

/* Enter a file that was just made and is open at `fd`: 0 or -errno. By its descriptor, since its
 * name may mean another file already. That it is known by now no file system of this machine brings
 * about, which has a number for each file. */
static int enter_made(struct uf_nodes *t, int fd, struct statx_of_5_8 *st)
{
    char name[16];
    snprintf(name, sizeof(name), "%d", fd);
    int path = openat(t->proc_self_fd, name, O_PATH | O_CLOEXEC);
    if (path < 0)
        return -errno;
    t->last_fd = path;
    int rc = stat_of(path, st);
    struct uf_node file = node_of(path, st);
    if (rc == 0 && uf_find_file(t, &file))
        rc = -EIO;
    if (rc == 0 && !uf_nodes_enter_new(t, file))
        rc = -ENOMEM;
    if (rc < 0)
        close(path);
    return rc;
}

/* `fd` is kept or closed. */
static int answer_made(struct uf_nodes *t, struct uf_handles *handles, int fd, uint32_t flags,
                       void *out)
{
    struct statx_of_5_8 st;
    uint64_t nodeid = t->next_nodeid;
    int rc = enter_made(t, fd, &st);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    int direct = !!(flags & O_DIRECT);
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out opened;
    } reply = {.entry = entry_of(t, nodeid, &st)};
    reply.opened.fh = uf_open_new(t, handles, fd, flags | t->making.traits[direct]);
    reply.opened.open_flags = t->making.fopen[direct];
    memcpy(out, &reply, sizeof(reply));
    return (int)sizeof(reply);
}

/* open(2) with O_CREAT of a name that is not there. What comes in its way Python meets as well, and
 * answers. It may take a disk, as remove_name(). */
static int create(struct uf_nodes *t, struct uf_handles *handles, unsigned how,
                  const struct fuse_in_header *in, const void *body, void *out)
{
    struct fuse_create_in arg;
    memcpy(&arg, body, sizeof(arg));
    const char *name = (const char *)body + sizeof(arg);
    const struct uf_making *making = &t->making;
    bool ready = making->fh_count && t->proc_self_fd >= 0 && uf_may_enter_new(t);
    bool may = (how & UF_ALONE) && (how & UF_TELLS);
    if (!ready || !may || !is_one_name(in, sizeof(arg), name) || !is_plain_name(name) ||
        (making->for_root && (in->uid || in->gid)))
        return 0;
    struct uf_node *directory = uf_find_node(t, in->nodeid);
    if (!directory || !is_local(t, directory))
        return 0;
    uint32_t flags = arg.flags & making->open_flags;
    int fd = open_beneath(directory->fd, name, flags | O_CREAT | O_EXCL, arg.mode & 07777, 0);
    return fd < 0 ? 0 : answer_made(t, handles, fd, flags & ~(uint32_t)O_TRUNC, out);
}

int uf_ask_nodes(struct uf_nodes *t, struct uf_handles *handles, unsigned how,
                 const struct fuse_in_header *in, const void *body, void *out)
{
    switch (in->opcode) {
    case FUSE_LOOKUP:
        return look_up(t, how, in, body, out);
    case FUSE_GETATTR:
        return get_attr(t, handles, in, body, out);
    case FUSE_SETATTR:
        return set_attr(t, in, body, out);
    case FUSE_CREATE:
        return create(t, handles, how, in, body, out);
    case FUSE_UNLINK:
    case FUSE_RMDIR:
        return remove_name(t, how, in, body);
    default:
        return 0;
    }
}
