"""Wire structures against the numbers of linux/fuse.h, protocol 7.45."""

from __future__ import annotations

import math
import os
import stat
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uringfs.fs.types import Entry, Statx
from uringfs.fuse import abi
from uringfs.fuse.opcodes import OPERATIONS

# sizeof() of the uapi structures on every architecture: they are padded to say the same everywhere.
SIZES = {
    "ACCESS_IN": 8,
    "ATTR": 88,
    "ATTR_OUT": 104,
    "BATCH_FORGET_IN": 8,
    "BMAP_IN": 16,
    "BMAP_OUT": 8,
    "COPY_FILE_RANGE_IN": 56,
    "COPY_FILE_RANGE_OUT": 8,
    "CREATE_IN": 16,
    "ENTRY_OUT": 128,
    "EXT_HEADER": 8,
    "FALLOCATE_IN": 32,
    "FLUSH_IN": 24,
    "FORGET_IN": 8,
    "FORGET_ONE": 16,
    "FSYNC_IN": 16,
    "GETATTR_IN": 16,
    "GETXATTR_IN": 8,
    "GETXATTR_OUT": 8,
    "INIT_COMPAT_IN": 16,
    "INIT_IN": 64,
    "INIT_OUT": 64,
    "INTERRUPT_IN": 8,
    "IN_HEADER": 40,
    "IOCTL_IN": 32,
    "IOCTL_OUT": 16,
    "LINK_IN": 8,
    "LK_IN": 48,
    "LK_OUT": 24,
    "LSEEK_IN": 24,
    "LSEEK_OUT": 8,
    "MKDIR_IN": 8,
    "MKNOD_IN": 16,
    "NOTHING": 0,
    "NOTIFY_INVAL_ENTRY_OUT": 16,
    "NOTIFY_INVAL_INODE_OUT": 24,
    "NOTIFY_PRUNE_OUT": 16,
    "NOTIFY_RETRIEVE_IN": 40,
    "OPEN_IN": 8,
    "OPEN_OUT": 16,
    "OUT_HEADER": 16,
    "POLL_IN": 24,
    "POLL_OUT": 8,
    "READ_IN": 40,
    "RELEASE_IN": 24,
    "REMOVEMAPPING_IN": 4,
    "REMOVEMAPPING_ONE": 16,
    "RENAME2_IN": 16,
    "RENAME_IN": 8,
    "SECCTX": 8,
    "SECCTX_HEADER": 8,
    "SETATTR_IN": 88,
    "SETUPMAPPING_IN": 40,
    "SETXATTR_COMPAT_IN": 8,
    "SETXATTR_EXT": 8,
    "SETXATTR_IN": 16,
    "STATFS_OUT": 80,
    "STATX": 256,
    "STATX_IN": 24,
    "STATX_OUT": 288,
    "SUPP_GROUPS": 4,
    "SYNCFS_IN": 8,
    "WRITE_IN": 40,
    "WRITE_OUT": 8,
}
COMPOSED = {"ENTRY_REPLY": 144, "ATTR_REPLY": 120, "STATX_REPLY": 304, "OPEN_REPLY": 32,
            "CREATE_REPLY": 160}  # fmt: skip


def test_sizes_are_those_of_the_uapi_header() -> None:
    found = {name: each.size for name, each in vars(abi).items() if isinstance(each, Struct)}
    assert found == SIZES | COMPOSED


def test_flags_and_opcodes_are_those_of_the_uapi_header() -> None:
    assert abi.Opcode(53).name == "COPY_FILE_RANGE_64"
    assert abi.InitFlags(1 << 42).name == "REQUEST_TIMEOUT"
    assert abi.InitFlags(1 << 32).name == "SECURITY_CTX"
    assert [flag.value for flag in abi.InitFlags] == [1 << bit for bit in range(43)]


def test_every_opcode_has_a_row_but_those_a_passthrough_cannot_serve() -> None:
    missing = {code.name for code in abi.Opcode} - {row.opcode.name for row in OPERATIONS.values()}
    assert missing == {"NOTIFY_REPLY"}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, (0, 0)), (5.0, (5, 0)), (0.5, (0, 500_000_000)), (2.0**32 - 1, (2**32 - 1, 0))],
)
def test_a_timeout_is_seconds_and_nanoseconds(seconds: float, expected: tuple[int, int]) -> None:
    assert abi.split_timeout(seconds) == expected


@given(st.floats(0, 2**32 - 1, allow_nan=False))
def test_a_timeout_keeps_its_value(seconds: float) -> None:
    whole, nanoseconds = abi.split_timeout(seconds)
    assert 0 <= nanoseconds < 10**9
    assert math.isclose(whole + nanoseconds / 1e9, seconds, rel_tol=1e-9, abs_tol=1e-9)


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_a_device_number_is_encoded_as_the_c_library_does(major: int, minor: int) -> None:
    assert abi.encode_dev(major, minor) == os.makedev(major, minor)


def _unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


_seconds = st.integers(-(2**63), 2**63 - 1)
STATS = st.builds(
    Statx,
    mask=_unsigned(32), blksize=_unsigned(32), attributes=_unsigned(64), nlink=_unsigned(32),
    uid=_unsigned(32), gid=_unsigned(32), mode=_unsigned(16), ino=_unsigned(64),
    size=_unsigned(64), blocks=_unsigned(64), attributes_mask=_unsigned(64),
    atime=_seconds, atime_nsec=_unsigned(32), btime=_seconds, btime_nsec=_unsigned(32),
    ctime=_seconds, ctime_nsec=_unsigned(32), mtime=_seconds, mtime_nsec=_unsigned(32),
    rdev_major=st.integers(0, 0xFFF), rdev_minor=st.integers(0, 0xFFFFF),
    dev_major=_unsigned(32), dev_minor=_unsigned(32), mnt_id=_unsigned(64),
)  # fmt: skip


@given(STATS, _unsigned(64), st.floats(0, 1000), st.floats(0, 1000))
def test_an_entry_survives_the_wire(
    attr: Statx, nodeid: int, entry_timeout: float, attr_timeout: float
) -> None:
    entry = Entry(nodeid, 7, attr, 1, entry_timeout, attr_timeout)
    fields = abi.ENTRY_OUT.unpack(abi.ENTRY_OUT.pack(*abi.entry_fields(entry)))
    nodeid_out, generation, entry_valid, attr_valid, entry_nsec, attr_nsec, *rest = fields
    assert (nodeid_out, generation) == (nodeid, 7)
    assert (entry_valid, entry_nsec) == abi.split_timeout(entry_timeout)
    assert (attr_valid, attr_nsec) == abi.split_timeout(attr_timeout)
    assert rest == [
        attr.ino, attr.size, attr.blocks, attr.atime, attr.mtime, attr.ctime,
        attr.atime_nsec, attr.mtime_nsec, attr.ctime_nsec, attr.mode, attr.nlink,
        attr.uid, attr.gid, os.makedev(attr.rdev_major, attr.rdev_minor), attr.blksize, 1,
    ]  # fmt: skip


@given(STATS)
def test_statx_survives_the_wire_without_the_servers_mount_id(attr: Statx) -> None:
    fields = abi.STATX.unpack(abi.STATX.pack(*abi.statx_fields(attr)))
    assert fields == (attr.mask & 0xFFF, *attr[1:-1])


def test_statx_is_laid_out_as_the_system_call_lays_it_out(tmp_path: os.PathLike[str]) -> None:
    from uringfs.fs.syscalls import statx

    here = os.stat(tmp_path)
    fields = abi.STATX.unpack(abi.STATX.pack(*abi.statx_fields(statx(-100, os.fsencode(tmp_path)))))
    assert stat.S_ISDIR(fields[6])
    assert (fields[7], fields[4], fields[3]) == (here.st_ino, here.st_uid, here.st_nlink)
