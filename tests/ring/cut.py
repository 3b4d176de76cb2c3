"""C built with a liburing whose submissions keep the last entry back when that ends a chain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import uringfs

PACKAGE = Path(uringfs.__file__).parent

CUT = """
#include <liburing.h>

static unsigned uf_kept_back(struct io_uring *ring)
{
    unsigned queued = ring->sq.sqe_tail - *ring->sq.khead;
    unsigned wide = ring->flags & IORING_SETUP_SQE128 ? 1 : 0;
    unsigned before = (ring->sq.sqe_tail - 2) & *ring->sq.kring_mask;
    return queued > 1 && ring->sq.sqes[before << wide].flags & IOSQE_IO_LINK;
}

#define UF_CUT(call)                          \\
    ({                                        \\
        unsigned kept = uf_kept_back(ring);   \\
        ring->sq.sqe_tail -= kept;            \\
        int rc = kept ? io_uring_submit(ring) : (call); \\
        ring->sq.sqe_tail += kept;            \\
        rc;                                   \\
    })

static inline int uf_cut_submit(struct io_uring *ring)
{
    return UF_CUT(io_uring_submit(ring));
}

static inline int uf_cut_get_events(struct io_uring *ring)
{
    return UF_CUT(io_uring_submit_and_get_events(ring));
}

static inline int uf_cut_wait(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned n,
                              struct __kernel_timespec *ts)
{
    return UF_CUT(io_uring_submit_and_wait_timeout(ring, cqe, n, ts, NULL));
}

#define io_uring_submit uf_cut_submit
#define io_uring_submit_and_get_events uf_cut_get_events
#define io_uring_submit_and_wait_timeout(ring, cqe, n, ts, mask) uf_cut_wait(ring, cqe, n, ts)
"""


def build(directory: Path) -> Path:
    """The package, so built, below a directory that it can be imported from."""
    if not (PACKAGE / "ring" / "csrc").is_dir():
        pytest.skip("the package is installed, without its sources")
    pytest.importorskip("setuptools", reason="cffi compiles with it")
    built = directory / "uringfs"
    shutil.copytree(PACKAGE, built, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    header = directory / "cut.h"
    header.write_text(CUT)
    subprocess.run(
        [sys.executable, built / "ring" / "_build.py"], check=True, capture_output=True, timeout=60,
        env=os.environ | {"CFLAGS": f"-include {header}", "PYTHONPATH": ""},
    )  # fmt: skip
    return built
