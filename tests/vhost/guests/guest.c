/* What a guest does on a share, and whether it went as POSIX and Linux have it.
 *
 *     guest DIRECTORY
 *
 * Each check works in a directory of its own below it and leaves its files there. One line on
 * standard output for each: "ok NAME", or "FAILED NAME" with the place and errno. It runs on any
 * file system: tests let it run on a plain directory first.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define want(what)                                                              \
    do {                                                                        \
        errno = 0;                                                              \
        if (!(what)) {                                                          \
            printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno));     \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

#define refused(call, code) ((call) == -1 && errno == (code))

enum { PAGE = 4096, MIB = 1 << 20 };

/* The byte at an offset of the file that has this seed. */
static unsigned char pattern(uint64_t offset, unsigned seed)
{
    return (unsigned char)((offset * 2654435761u >> 13) + seed + offset);
}

static void fill(unsigned char *buffer, size_t length, uint64_t offset, unsigned seed)
{
    for (size_t at = 0; at < length; at++)
        buffer[at] = pattern(offset + at, seed);
}

static bool fits(const unsigned char *buffer, size_t length, uint64_t offset, unsigned seed)
{
    for (size_t at = 0; at < length; at++)
        if (buffer[at] != pattern(offset + at, seed))
            return false;
    return true;
}

static bool is_zero(const unsigned char *buffer, size_t length)
{
    for (size_t at = 0; at < length; at++)
        if (buffer[at])
            return false;
    return true;
}

static void *pages(size_t length)
{
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    want(memory != MAP_FAILED);
    return memory;
}

static void write_file(const char *name, size_t length, unsigned seed)
{
    unsigned char *buffer = pages(length);
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    want(fd >= 0);
    fill(buffer, length, 0, seed);
    want(write(fd, buffer, length) == (ssize_t)length);
    want(close(fd) == 0);
    munmap(buffer, length);
}

static off_t size_of(const char *name)
{
    struct stat status;
    want(lstat(name, &status) == 0);
    return status.st_size;
}

/* Exit status of what is done in a child; each check may well be one process with others. */
static int child(void (*work)(void))
{
    int status;
    fflush(stdout);
    pid_t pid = fork();
    want(pid >= 0);
    if (pid == 0) {
        work();
        exit(0);
    }
    want(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void data(void)
{
    static const size_t lengths[] = {1, 511, PAGE, PAGE + 1, 131072, 300001};
    unsigned char *buffer = pages(MIB);
    uint64_t end = 0;
    int fd = open("f", O_RDWR | O_CREAT, 0644);
    want(fd >= 0);
    for (int round = 0; round < 3; round++)
        for (size_t n = 0; n < sizeof lengths / sizeof *lengths; n++) {
            fill(buffer, lengths[n], end, 1);
            want(write(fd, buffer, lengths[n]) == (ssize_t)lengths[n]);
            end += lengths[n];
        }
    want(fsync(fd) == 0 && fdatasync(fd) == 0);
    for (uint64_t at = 0; at < end; at += 100003) {
        size_t length = end - at < 100003 ? end - at : 100003;
        want(pread(fd, buffer, 100003, at) == (ssize_t)length && fits(buffer, length, at, 1));
    }
    want(ftruncate(fd, 1000) == 0 && ftruncate(fd, 9000) == 0);
    want(pread(fd, buffer, MIB, 500) == 8500);
    want(fits(buffer, 500, 500, 1) && is_zero(buffer + 500, 8000));
    int append = open("f", O_WRONLY | O_APPEND);
    want(append >= 0 && write(append, "end", 3) == 3 && size_of("f") == 9003);
    want(pread(fd, buffer, 9, 9000) == 3 && memcmp(buffer, "end", 3) == 0);
    want(refused(read(append, buffer, 1), EBADF));
}

static void names(void)
{
    char name[300], target[PATH_MAX];
    struct dirent *entry;
    struct stat one, two;
    int fd, count = 0;

    want(mkdir("d", 0755) == 0 && refused(mkdir("d", 0755), EEXIST));
    for (int n = 0; n < 300; n++) {
        sprintf(name, "d/a file with a rather long name, number %d", n);
        want((fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0600)) >= 0 && close(fd) == 0);
    }
    DIR *directory = opendir("d");
    want(directory != NULL);
    while ((entry = readdir(directory)))
        count += entry->d_name[0] != '.';
    want(count == 300 && closedir(directory) == 0);
    want(refused(rmdir("d"), ENOTEMPTY) && refused(unlink("nothing"), ENOENT));
    memset(name, 'x', 256), name[256] = 0;
    want(refused(open(name, O_CREAT | O_WRONLY, 0600), ENAMETOOLONG));

    write_file("f", 10, 1), write_file("g", 20, 2);
    want(rename("f", "g") == 0 && size_of("g") == 10 && refused(access("f", F_OK), ENOENT));
    want(link("g", "h") == 0 && stat("g", &one) == 0 && stat("h", &two) == 0);
    want(one.st_ino == two.st_ino && one.st_nlink == 2);
    want(symlink("../names/g", "s") == 0 && readlink("s", target, sizeof target) == 10);
    want(memcmp(target, "../names/g", 10) == 0 && stat("s", &two) == 0 && two.st_size == 10);
    want(rename("d", "e") == 0 && access("e/a file with a rather long name, number 7", F_OK) == 0);

    want((fd = open("gone", O_RDWR | O_CREAT, 0600)) >= 0 && unlink("gone") == 0);
    want(write(fd, "still here", 10) == 10 && pread(fd, target, 10, 0) == 10);
    want(memcmp(target, "still here", 10) == 0 && fstat(fd, &one) == 0 && one.st_nlink == 0);
    want(symlink("loop", "loop") == 0 && refused(open("loop", O_RDONLY), ELOOP));
}

static void attributes(void)
{
    struct timespec times[2] = {{1000000001, 123456789}, {1234567890, 987654321}};
    struct stat status;
    struct statvfs space;

    write_file("f", 5, 1);
    want(chmod("f", 04751) == 0 && chown("f", 1234, 4321) == 0 && stat("f", &status) == 0);
    want(status.st_uid == 1234 && status.st_gid == 4321 && (status.st_mode & 07777) == 0751);
    want(utimensat(AT_FDCWD, "f", times, 0) == 0 && stat("f", &status) == 0);
    want(status.st_mtim.tv_sec == 1234567890 && status.st_mtim.tv_nsec == 987654321);
    want(status.st_atim.tv_sec == 1000000001 && status.st_atim.tv_nsec == 123456789);
    umask(027);
    want(mkfifo("p", 0666) == 0 && stat("p", &status) == 0 && status.st_mode == (S_IFIFO | 0640));
    want(truncate("f", 3) == 0 && size_of("f") == 3);
    want(statvfs(".", &space) == 0 && space.f_blocks && space.f_namemax == 255);
}

static void mapping(void)
{
    unsigned char *buffer = pages(PAGE), *shared, *private;
    int fd;

    write_file("f", 5 * PAGE + 17, 1);
    want((fd = open("f", O_RDWR)) >= 0);
    shared = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    private = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    want(shared != MAP_FAILED && private != MAP_FAILED);
    want(fits(shared, 5 * PAGE + 17, 0, 1) && is_zero(shared + 5 * PAGE + 17, PAGE - 17));
    memcpy(private + 2 * PAGE, "private", 7);
    memcpy(shared + PAGE - 3, "shared", 6);
    want(msync(shared, 6 * PAGE, MS_SYNC) == 0);
    want(pread(fd, buffer, 6, PAGE - 3) == 6 && memcmp(buffer, "shared", 6) == 0);
    want(pwrite(fd, "written", 7, 3 * PAGE) == 7 && memcmp(shared + 3 * PAGE, "written", 7) == 0);
    want(pread(fd, buffer, 7, 2 * PAGE) == 7 && fits(buffer, 7, 2 * PAGE, 1));
    want(munmap(shared, 6 * PAGE) == 0 && size_of("f") == 5 * PAGE + 17);
}

static void execute(void)
{
    execl("./guest", "guest", (char *)NULL);
}

static void executing(void)
{
    int from = open("/proc/self/exe", O_RDONLY), to = open("guest", O_WRONLY | O_CREAT, 0755);
    char buffer[16384];
    ssize_t count;

    want(from >= 0 && to >= 0);
    while ((count = read(from, buffer, sizeof buffer)) > 0)
        want(write(to, buffer, count) == count);
    want(close(to) == 0 && child(execute) == 2);
    want(unlink("guest") == 0);
}

static void direct(void)
{
    unsigned char *buffer = pages(MIB), *small = pages(2 * PAGE);
    int fd = open("f", O_RDWR | O_CREAT | O_DIRECT, 0644);
    int buffered = open("f", O_RDONLY);

    want(fd >= 0 && buffered >= 0);
    fill(buffer, MIB, 0, 3);
    want(write(fd, buffer, MIB) == MIB);
    memset(buffer, 0, MIB);
    want(pread(fd, buffer, MIB, 0) == MIB && fits(buffer, MIB, 0, 3));
    for (off_t at = 0; at < MIB; at += 37 * PAGE)
        want(pread(fd, small, PAGE, at) == PAGE && fits(small, PAGE, at, 3));
    want(pread(buffered, small, PAGE, PAGE) == PAGE && fits(small, PAGE, PAGE, 3));
    fill(small, PAGE, PAGE, 4);
    want(pwrite(fd, small, PAGE, PAGE) == PAGE);
    want(pread(buffered, small, PAGE, PAGE) == PAGE && fits(small, PAGE, PAGE, 4));
    want(pread(fd, small, PAGE, MIB - 512) == 512 && pread(fd, small, PAGE, MIB) == 0);
}

static void lock_elsewhere(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 50, .l_len = 1};
    int fd = open("f", O_RDWR);

    want(fd >= 0);
    want(fcntl(fd, F_SETLK, &lock) == -1 && (errno == EAGAIN || errno == EACCES));
    want(fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_start == 10);
    want(lock.l_pid == getppid());
    lock.l_type = F_WRLCK, lock.l_start = 200;
    want(fcntl(fd, F_SETLK, &lock) == 0);
    want(refused(flock(fd, LOCK_EX | LOCK_NB), EWOULDBLOCK));
}

static void wait_for_lock(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 1};
    int fd = open("f", O_RDWR);

    want(fd >= 0 && fcntl(fd, F_SETLKW, &lock) == 0);
    want(write(fd, "after", 5) == 5);
}

static void locks(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 100};
    struct flock open_lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 500, .l_len = 1};
    int fd, other, status;

    write_file("f", 1000, 1);
    want((fd = open("f", O_RDWR)) >= 0 && (other = open("f", O_RDWR)) >= 0);
    want(fcntl(fd, F_SETLK, &lock) == 0 && flock(fd, LOCK_EX) == 0);
    want(fcntl(fd, F_OFD_SETLK, &open_lock) == 0);
    want(refused(fcntl(other, F_OFD_SETLK, &open_lock), EAGAIN));
    want(child(lock_elsewhere) == 0);
    fflush(stdout);
    pid_t waiting = fork();
    want(waiting >= 0);
    if (waiting == 0) {
        wait_for_lock();
        exit(0);
    }
    for (int turn = 0; turn < 50; turn++)
        sched_yield();
    want(waitpid(waiting, &status, WNOHANG) == 0);
    lock.l_type = F_UNLCK;
    want(fcntl(fd, F_SETLK, &lock) == 0);
    want(waitpid(waiting, &status, 0) == waiting && status == 0);
}

static void sparse(void)
{
    unsigned char *buffer = pages(MIB);
    struct stat before, after;
    int fd, copy;

    write_file("f", MIB, 1);
    want((fd = open("f", O_RDWR)) >= 0 && fsync(fd) == 0 && fstat(fd, &before) == 0);
    want(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, MIB / 4, MIB / 2) == 0);
    want(fstat(fd, &after) == 0 && after.st_size == MIB);
    want(after.st_blocks * 512 <= before.st_blocks * 512 - MIB / 4);
    want(pread(fd, buffer, MIB, 0) == MIB && fits(buffer, MIB / 4, 0, 1));
    want(is_zero(buffer + MIB / 4, MIB / 2) && fits(buffer + MIB * 3 / 4, 100, MIB * 3 / 4, 1));
    want(lseek(fd, 0, SEEK_HOLE) == MIB / 4 && lseek(fd, MIB / 4, SEEK_DATA) == MIB * 3 / 4);
    want(fallocate(fd, 0, MIB, MIB) == 0 && fstat(fd, &after) == 0 && after.st_size == 2 * MIB);
    want((copy = open("g", O_RDWR | O_CREAT, 0644)) >= 0);
    off_t from = 100, to = 0;
    want(copy_file_range(fd, &from, copy, &to, 5000, 0) == 5000 && from == 5100 && to == 5000);
    want(pread(copy, buffer, MIB, 0) == 5000 && fits(buffer, 5000, 100, 1));
}

static void labels(void)
{
    char value[100], list[200];

    write_file("f", 10, 1);
    want(setxattr("f", "user.colour", "blue", 4, XATTR_CREATE) == 0);
    want(refused(setxattr("f", "user.colour", "red", 3, XATTR_CREATE), EEXIST));
    want(getxattr("f", "user.colour", value, sizeof value) == 4 && memcmp(value, "blue", 4) == 0);
    want(refused(getxattr("f", "user.colour", value, 2), ERANGE));
    want(listxattr("f", list, sizeof list) >= 12 && memmem(list, sizeof list, "user.colour", 12));
    want(setxattr("f", "user.other", "", 0, 0) == 0 && removexattr("f", "user.other") == 0);
    want(refused(removexattr("f", "user.other"), ENODATA));
}

static void outsider(void)
{
    struct stat status;

    want(setresgid(4321, 4321, 4321) == 0 && setresuid(1234, 1234, 1234) == 0);
    write_file("open/mine", 10, 1);
    want(stat("open/mine", &status) == 0 && status.st_uid == 1234 && status.st_gid == 4321);
    want(refused(open("closed/f", O_WRONLY | O_CREAT, 0644), EACCES));
    want(refused(open("set", O_RDWR | O_TRUNC), EACCES));
    int fd = open("set-for-all", O_WRONLY);
    want(fd >= 0 && write(fd, "x", 1) == 1);
    want(stat("set-for-all", &status) == 0 && (status.st_mode & 07777) == 0777);
}

static void users(void)
{
    umask(0);
    want(mkdir("open", 0777) == 0 && mkdir("closed", 0700) == 0);
    write_file("set", 10, 1), write_file("set-for-all", 10, 1);
    want(chmod("set", 04755) == 0 && chmod("set-for-all", 06777) == 0);
    want(child(outsider) == 0);
}

static void busy(unsigned seed)
{
    unsigned char *buffer = pages(65536);
    char name[20];

    sprintf(name, "f%u", seed);
    int fd = open(name, O_RDWR | O_CREAT | (seed % 2 ? O_DIRECT : 0), 0644);
    want(fd >= 0);
    for (off_t at = 0; at < MIB; at += 65536) {
        fill(buffer, 65536, at, seed);
        want(pwrite(fd, buffer, 65536, at) == 65536);
    }
    for (off_t at = MIB - 65536; at >= 0; at -= 65536)
        want(pread(fd, buffer, 65536, at) == 65536 && fits(buffer, 65536, at, seed));
}

static void parallel(void)
{
    int status;
    fflush(stdout);
    for (unsigned seed = 0; seed < 6; seed++) {
        pid_t pid = fork();
        want(pid >= 0);
        if (pid == 0) {
            busy(seed);
            exit(0);
        }
    }
    for (int n = 0; n < 6; n++)
        want(wait(&status) > 0 && status == 0);
}

static const struct {
    const char *name;
    void (*work)(void);
} checks[] = {
    {"data", data},         {"names", names},   {"attributes", attributes}, {"mapping", mapping},
    {"executing", executing}, {"direct", direct}, {"locks", locks},           {"sparse", sparse},
    {"labels", labels},     {"users", users},   {"parallel", parallel},
};

static const char *name;

static void check(void)
{
    for (size_t n = 0; n < sizeof checks / sizeof *checks; n++)
        if (strcmp(checks[n].name, name) == 0) {
            want(mkdir(name, 0755) == 0 && chdir(name) == 0);
            alarm(30);
            checks[n].work();
        }
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    want(chdir(argv[1]) == 0);
    umask(022);
    for (size_t n = 0; n < sizeof checks / sizeof *checks; n++) {
        name = checks[n].name;
        int status = child(check);
        if (status == 0)
            printf("ok %s\n", name);
        else
            printf("FAILED %s with status %d\n", name, status);
    }
    return 0;
}
