"""INIT: what is taken of what the kernel offers."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uringfs.config import CachePolicy, Config
from uringfs.fs.types import Features
from uringfs.fuse.abi import InitFlags
from uringfs.fuse.negotiate import Agreement, Offer, negotiate

EVERYTHING = (1 << 43) - 1


def agree(flags: int = EVERYTHING, minor: int = 45, major: int = 7, **options: Any) -> Agreement:
    return negotiate(
        Offer(major, minor, 1 << 17, flags),
        Config(**options),
        max_background=512,
        max_write=1 << 20,
    )


@given(st.integers(0, EVERYTHING))
def test_nothing_is_taken_that_was_not_offered(flags: int) -> None:
    agreement = agree(flags, xattr=True, writeback=True, no_open=True, killpriv_v2=True)
    assert agreement.flags & ~flags == 0


@pytest.mark.parametrize(
    ("options", "flag", "feature"),
    [
        ({"writeback": True}, InitFlags.WRITEBACK_CACHE, "writeback"),
        ({"no_open": True}, InitFlags.NO_OPEN_SUPPORT, "no_open"),
        ({"no_opendir": True}, InitFlags.NO_OPENDIR_SUPPORT, "no_opendir"),
        ({"killpriv_v2": True}, InitFlags.HANDLE_KILLPRIV_V2, "killpriv_v2"),
        ({"dax_file_size": 0}, InitFlags.HAS_INODE_DAX, "perfile_dax"),
        ({"xattr": True}, InitFlags.SECURITY_CTX, None),
        ({"cache_policy": CachePolicy.ALWAYS}, InitFlags.CACHE_SYMLINKS, None),
        ({"cache_policy": CachePolicy.METADATA}, InitFlags.CACHE_SYMLINKS, None),
    ],
)
def test_an_option_asks_for_its_flag(
    options: dict[str, Any], flag: InitFlags, feature: str | None
) -> None:
    assert flag in agree(**options).flags
    assert flag not in agree().flags
    assert flag not in agree(EVERYTHING & ~flag, **options).flags
    if feature is not None:
        assert getattr(agree(**options).features, feature) is True
        assert getattr(agree(EVERYTHING & ~flag, **options).features, feature) is False


def test_without_options_the_kernel_sends_groups_and_no_feature_is_on() -> None:
    always = Features(create_supp_group=True, direct_io_mmap=True, submounts=True)
    assert agree().features == always
    without = InitFlags.CREATE_SUPP_GROUP | InitFlags.DIRECT_IO_ALLOW_MMAP | InitFlags.SUBMOUNTS
    assert agree(EVERYTHING & ~without).features == Features()


ACL_FLAGS = [InitFlags.POSIX_ACL, InitFlags.DONT_MASK, InitFlags.SETXATTR_EXT]


def test_posix_acl_takes_all_that_it_needs_and_nothing_of_it_without() -> None:
    agreement = agree(posix_acl=True)
    assert agreement.features.posix_acl
    for flag in ACL_FLAGS:
        assert flag in agreement.flags
        assert flag not in agree().flags


@pytest.mark.parametrize("flag", ACL_FLAGS)
def test_posix_acl_is_refused_where_a_part_is_missing(flag: InitFlags) -> None:
    with pytest.raises(OSError, match="posix_acl: the kernel does not offer it") as caught:
        agree(EVERYTHING & ~flag, posix_acl=True)
    assert caught.value.errno == errno.EPROTO
    assert agree(EVERYTHING & ~flag).features == agree().features


def test_no_readdir_asks_for_no_readdirplus() -> None:
    assert InitFlags.DO_READDIRPLUS in agree().flags
    assert InitFlags.DO_READDIRPLUS not in agree(no_readdir=True).flags


def test_what_may_not_be_kept_is_not_looked_up_with_readdirplus() -> None:
    assert InitFlags.DO_READDIRPLUS in agree(attr_timeout=0).flags
    assert InitFlags.DO_READDIRPLUS not in agree(attr_timeout=0, entry_timeout=0).flags


def test_without_opens_truncation_is_a_request_of_its_own() -> None:
    no_open: dict[str, Any] = {"no_open": True, "cache_policy": CachePolicy.ALWAYS}
    assert InitFlags.ATOMIC_O_TRUNC in agree().flags
    assert InitFlags.ATOMIC_O_TRUNC not in agree(**no_open).flags
    offered = EVERYTHING & ~InitFlags.NO_OPEN_SUPPORT
    assert InitFlags.ATOMIC_O_TRUNC in agree(offered, **no_open).flags


def test_the_reply_says_what_was_agreed() -> None:
    agreement = agree()
    fields = agreement.fields()
    assert fields[:3] == (7, 45, 1 << 17)
    assert fields[3] | fields[10] << 32 == agreement.flags
    assert fields[4:9] == (512, 384, 1 << 20, 1, 256)


def test_background_requests_are_never_none() -> None:
    agreement = negotiate(Offer(7, 45, 0, 0), Config(), max_background=1, max_write=4096)
    assert agreement.fields()[4:6] == (1, 1)


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99)])
def test_a_kernel_too_old_is_refused(major: int, minor: int) -> None:
    with pytest.raises(OSError, match=r"needed is 7\.31") as caught:
        agree(major=major, minor=minor)
    assert caught.value.errno == errno.EPROTO


def test_a_newer_major_version_gets_ours_and_may_ask_again() -> None:
    agreement = agree(major=8, minor=0)
    assert agreement.fields()[:2] == (7, 45)
    assert agreement.flags == 0
