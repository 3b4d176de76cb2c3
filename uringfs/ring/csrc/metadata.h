/* What of FUSE's metadata is answered by the table of inodes, without Python. */
#ifndef URINGFS_METADATA_H
#define URINGFS_METADATA_H

#include "nodes.h"

/* Whether it is on a disk of this machine's, or in its memory. */
bool uf_is_local(const struct uf_nodes *t, uint64_t nodeid);

#define UF_DONE 1 /* no body is as short */
#define UF_ALONE 1u /* nobody else would have to wait */
#define UF_TELLS 2u /* Python is told of what is entered before it goes on */
/* Answer a LOOKUP, GETATTR, SETATTR, CREATE, UNLINK or RMDIR: the length of the body that is put to `out`,
 * UF_DONE if there is none, or -errno; 0 leaves the request to Python, as all others. `how`: of
 * these flags. `body`: what comes after the header. */
int uf_ask_nodes(struct uf_nodes *t, struct uf_handles *handles, unsigned how,
                 const struct fuse_in_header *in, const void *body, void *out);

#endif
