/* The entries of a directory, from getdents64(2)'s layout to that of FUSE_READDIR. */
#ifndef URINGFS_DIRENTS_H
#define URINGFS_DIRENTS_H

#include <dirent.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <string.h>

/* As many of the `length` bytes of entries at `in` as there is room for: bytes written. */
static inline uint32_t uf_pack_dirents(uint8_t *out, uint32_t room, const uint8_t *in,
                                       uint32_t length)
{
    uint32_t used = 0;
    for (uint32_t at = 0; at < length;) {
        const struct dirent64 *d = (const struct dirent64 *)(in + at);
        struct fuse_dirent header = {.ino = d->d_ino,
                                     .off = (uint64_t)d->d_off,
                                     .namelen = (uint32_t)strlen(d->d_name),
                                     .type = d->d_type};
        uint32_t size = (uint32_t)FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + header.namelen);
        if (size > room - used)
            break;
        memset(out + used + size - 8, 0, 8);
        memcpy(out + used, &header, FUSE_NAME_OFFSET);
        memcpy(out + used + FUSE_NAME_OFFSET, d->d_name, header.namelen);
        used += size;
        at += d->d_reclen;
    }
    return used;
}

#endif
