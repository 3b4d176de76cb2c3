"""InodeMap against a model: which node id a lookup gives, and when the kernel's last use ends."""

import errno
import os
import tempfile
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from uringfs.fs.descriptors import Descriptors
from uringfs.fs.file_handle import FileHandle, MountFds
from uringfs.fs.inodes import FIRST_ARTIFICIAL_NODEID, MAX_LOOKUPS, InodeMap
from uringfs.fs.mirror import Entered, MountKey
from uringfs.fs.syscalls import AT_FDCWD, statx
from uringfs.fs.types import INDEX_SHIFT, ROOT_ID, OwnedFd, Statx

ROOT_INO = 99
INOS = st.sampled_from([2, 3, 4, 2**47 - 1, 2**47, FIRST_ARTIFICIAL_NODEID, 2**64 - 1])
MOUNTS = st.sampled_from([(8, 1, 20), (8, 1, 21), (8, 2, 20)])
# The file that has the inode number at the time: a later one is another file, with another handle.
GENERATIONS = st.sampled_from([None, 0, 1])
COUNTS = st.sampled_from([0, 1, 1, 2, 3, MAX_LOOKUPS - 1, MAX_LOOKUPS])


class CountingMounts(MountFds):
    """Counts the users of each handle instead of opening mounts that do not exist."""

    def __init__(self) -> None:
        super().__init__(lambda path_fd, flags: -1)
        self.held: Counter[FileHandle] = Counter()

    def hold(self, handle: FileHandle) -> None:
        self.held[handle] += 1

    def drop(self, handle: FileHandle) -> None:
        self.held[handle] -= 1


class Reflection:
    """Stands for compiled code that has been told of inodes, and answers lookups of them."""

    def __init__(self) -> None:
        self.next_nodeid = 0
        self.most = 0
        self.entered: Entered = lambda *inode: None
        self.rows: dict[int, tuple[int, ...]] = {}
        self.counts: Counter[int] = Counter()

    def enter_new(self, fd_limit: int, most: int, entered: Entered) -> None:
        self.most, self.entered = most, entered

    def enter(self, nodeid: int, *what: int) -> None:
        assert nodeid not in self.rows
        self.rows[nodeid] = what

    def leave(self, nodeid: int) -> None:
        self.rows.pop(nodeid, None)
        self.counts.pop(nodeid, None)

    def looked_up(self, nodeid: int) -> int:
        return self.counts.pop(nodeid, 0)


@dataclass
class Known:
    """What the model remembers of a node id; ``generation`` is None without a file handle."""

    ino: int
    mount: MountKey
    generation: int | None
    lookups: int


def some_attr() -> Statx:
    return statx(AT_FDCWD, b"/", 0)


def a_file() -> OwnedFd:
    return OwnedFd(os.open("/", os.O_PATH))


def a_handle(ino: int, mount: MountKey, generation: int) -> FileHandle:
    return repr((ino, mount, generation)).encode()


class InodeMachine(RuleBasedStateMachine):
    """Files of a few inode numbers on a few mounts, each with or without a file handle."""

    @initialize(by_ino=st.booleans(), root_has_handle=st.booleans())
    def begin(self, by_ino: bool, root_has_handle: bool) -> None:
        self.root_has_handle = root_has_handle
        self.by_ino = by_ino
        self.attr = some_attr()
        # A directory of the machine's own: descriptors of anything else do not count.
        self.directory = tempfile.mkdtemp()
        self.mounts = CountingMounts()
        self.map = InodeMap(self.mounts, Descriptors())
        if by_ino:
            self.map.prefer_ino()
        self.known: dict[int, Known] = {}
        # Whose the inode number is: of several the last one entered, until it is forgotten.
        self.owner: dict[tuple[MountKey, int], int] = {}
        self.given = {ROOT_ID}
        self.mount_numbers: dict[MountKey, int] = {}
        self.mirror: Reflection | None = None
        self.enter_root()

    def enter_root(self) -> None:
        mount, generation = (8, 1, 20), 0 if self.root_has_handle else None
        self.map.insert_root(
            self.a_file() if generation is None else a_handle(ROOT_INO, mount, generation),
            self.attr_of(ROOT_INO, mount),
        )
        self.mount_numbers.setdefault(mount, 0)
        self.remember(ROOT_ID, Known(ROOT_INO, mount, generation, 2))

    def open_fds(self) -> int:
        links = map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
        return sum(os.path.lexists(link) and os.readlink(link) == self.directory for link in links)

    def a_file(self) -> OwnedFd:
        return OwnedFd(os.open(self.directory, os.O_PATH))

    def attr_of(self, ino: int, mount: MountKey) -> Statx:
        major, minor, mnt_id = mount
        return self.attr._replace(ino=ino, dev_major=major, dev_minor=minor, mnt_id=mnt_id)

    def remember(self, nodeid: int, known: Known) -> None:
        self.known[nodeid] = known
        self.owner[known.mount, known.ino] = nodeid

    def expected(self, ino: int, mount: MountKey, generation: int | None) -> int | None:
        for nodeid, known in self.known.items():
            if generation is not None and (known.ino, known.mount, known.generation) == (
                ino, mount, generation,
            ):  # fmt: skip
                return nodeid
        owner = self.owner.get((mount, ino))
        if owner is None:
            return None
        reused = generation is not None and self.known[owner].generation is not None
        return None if reused else owner

    @rule(ino=st.one_of(INOS, st.just(ROOT_INO)), mount=MOUNTS, generation=GENERATIONS)
    def look_up(self, ino: int, mount: MountKey, generation: int | None) -> None:
        expected = self.expected(ino, mount, generation)
        file = self.a_file() if generation is None else a_handle(ino, mount, generation)
        inode = self.map.lookup(file, self.attr_of(ino, mount))
        if expected is None:
            self.check_new(inode.nodeid, ino, mount)
            self.remember(inode.nodeid, Known(ino, mount, generation, 1))
        else:
            known = self.known[expected]
            known.lookups = min(MAX_LOOKUPS, known.lookups + 1)
            if known.generation is None:
                known.generation = generation  # with its handle known, its descriptor is given up
            assert inode.nodeid == expected
        assert (inode.ino, inode.ids) == (ino, mount)

    def number(self, ino: int, mount: MountKey) -> int:
        """``mount | ino``, the mounts numbered as they come; as it is where it is too great."""
        upper = self.mount_numbers.setdefault(mount, len(self.mount_numbers))
        return ino if ino >= 1 << 47 else upper << 47 | ino

    def check_new(self, nodeid: int, ino: int, mount: MountKey) -> None:
        number = self.number(ino, mount)
        if self.by_ino and number < FIRST_ARTIFICIAL_NODEID and number not in self.known:
            assert nodeid == number
        else:
            assert nodeid not in self.given
            assert (nodeid >= FIRST_ARTIFICIAL_NODEID) == self.by_ino
            self.given.add(nodeid)

    @rule(data=st.data(), count=COUNTS)
    def forget(self, data: st.DataObject, count: int) -> None:
        nodeid = data.draw(st.sampled_from([*self.known, ROOT_ID, 12345]), "nodeid")
        self.map.forget(nodeid, count)
        known = self.known.get(nodeid)
        if known is None:
            return
        known.lookups = max(2 if nodeid == ROOT_ID else 0, known.lookups - count)
        if known.lookups == 0:
            del self.known[nodeid]
            if self.owner.get((known.mount, known.ino)) == nodeid:
                del self.owner[known.mount, known.ino]

    @rule(data=st.data())
    def look_up_often(self, data: st.DataObject) -> None:
        nodeid = data.draw(st.sampled_from([*self.known]), "nodeid")
        inode = self.map.get(nodeid)
        self.map.lookups_of(inode)
        inode.lookups = self.known[nodeid].lookups = MAX_LOOKUPS - 1

    @rule()
    def reflect(self) -> None:
        self.mirror = Reflection() if self.mirror is None else None
        self.map.reflect(self.mirror, enters=True)

    @precondition(lambda self: self.mirror is not None and self.mirror.rows)
    @rule(data=st.data(), times=st.integers(1, 3))
    def look_up_past_the_map(self, data: st.DataObject, times: int) -> None:
        assert self.mirror is not None
        nodeid = data.draw(st.sampled_from([*self.mirror.rows]), "nodeid")
        self.mirror.counts[nodeid] += times
        self.known[nodeid].lookups = min(MAX_LOOKUPS, self.known[nodeid].lookups + times)

    @precondition(lambda self: self.mirror is not None and self.mirror.most)
    @rule(ino=INOS, mount=MOUNTS)
    def find_past_the_map(self, ino: int, mount: MountKey) -> None:
        assert self.mirror is not None
        if any(row[1:] == (ino, *mount) for row in self.mirror.rows.values()):
            return
        nodeid, fd = self.mirror.next_nodeid, os.open(self.directory, os.O_PATH)
        self.mirror.next_nodeid += 1
        self.mirror.enter(nodeid, fd, ino, *mount)
        self.mirror.entered(nodeid, fd, ino, mount, self.attr.mode)
        self.check_new(nodeid, ino, mount)
        self.remember(nodeid, Known(ino, mount, None, 1))

    @rule()
    def clear(self) -> None:
        self.map.clear()
        assert len(self.map) == 0
        assert list(self.map) == []
        assert self.open_fds() == 0
        assert not any(self.mounts.held.values())
        self.known.clear()
        self.owner.clear()
        self.enter_root()

    @rule()
    def count(self) -> None:
        assert {inode.nodeid: self.map.lookups_of(inode) for inode in self.map} == {
            nodeid: known.lookups for nodeid, known in self.known.items()
        }

    @invariant()
    def is_mirrored(self) -> None:
        if self.mirror is not None:
            assert self.mirror.rows == {
                each.nodeid: (each.file.fd, each.ino, *each.ids)
                for each in self.map
                if isinstance(each.file, OwnedFd)
            }

    @invariant()
    def knows_what_the_model_knows(self) -> None:
        assert len(self.map) == len(self.known)
        for nodeid in self.given | set(range(2, 6)):
            if nodeid in self.known:
                assert self.map.get(nodeid).nodeid == nodeid
            else:
                with pytest.raises(OSError, match=str(nodeid)) as info:
                    self.map.get(nodeid)
                assert info.value.errno == errno.EBADF

    @invariant()
    def holds_only_what_it_knows(self) -> None:
        with_handle = [known for known in self.known.values() if known.generation is not None]
        held = {handle: count for handle, count in self.mounts.held.items() if count}
        assert held == {a_handle(k.ino, k.mount, k.generation or 0): 1 for k in with_handle}
        assert self.open_fds() == len(self.known) - len(with_handle)

    def teardown(self) -> None:
        if hasattr(self, "map"):
            self.map.clear()
            os.rmdir(self.directory)


InodeMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestInodeMap = InodeMachine.TestCase


@pytest.fixture
def inodes() -> InodeMap:
    inodes = InodeMap(CountingMounts(), Descriptors())
    inodes.insert_root(a_file(), some_attr())
    return inodes


def test_the_root_counts_two_and_stays(inodes: InodeMap) -> None:
    assert inodes.get(ROOT_ID).lookups == 2
    for _ in range(3):
        inodes.forget(ROOT_ID, MAX_LOOKUPS)
    assert inodes.get(ROOT_ID).lookups == 2


def test_it_is_idle_when_all_lookups_are_taken_back(inodes: InodeMap) -> None:
    assert inodes.is_idle()
    inodes.lookup(a_file(), some_attr())
    child = inodes.lookup(a_file(), some_attr()._replace(ino=5)).nodeid
    inodes.forget(ROOT_ID, 1)
    assert not inodes.is_idle()
    inodes.lookup(a_file(), some_attr())
    inodes.forget(child, 1)
    assert not inodes.is_idle()
    inodes.forget(ROOT_ID, 1)
    assert inodes.is_idle()


def test_all_numbers_carry_the_base() -> None:
    base = 7 << INDEX_SHIFT
    inodes = InodeMap(CountingMounts(), Descriptors(), base)
    inodes.insert_root(a_file(), some_attr())
    nodeids = [inodes.root_id]
    for ino in (5, 6, FIRST_ARTIFICIAL_NODEID, 2**64 - 1):
        nodeids.append(inodes.lookup(a_file(), some_attr()._replace(ino=ino)).nodeid)
    assert {nodeid >> INDEX_SHIFT for nodeid in nodeids} == {7}
    assert len(set(nodeids)) == 5
    root = inodes.get(inodes.root_id)
    assert inodes.number(5, root.ids) == base | 5


def test_lookups_do_not_overflow(inodes: InodeMap) -> None:
    attr = some_attr()._replace(ino=5)
    inode = inodes.lookup(a_file(), attr)
    inode.lookups = MAX_LOOKUPS - 1
    for _ in range(3):
        assert inodes.lookup(a_file(), attr).lookups == MAX_LOOKUPS
    inodes.forget(inode.nodeid, MAX_LOOKUPS)
    assert len(inodes) == 1


def test_a_descriptor_is_lent_not_copied(inodes: InodeMap) -> None:
    file = a_file()
    nodeid = inodes.lookup(file, some_attr()._replace(ino=5)).nodeid
    assert inodes.open(nodeid) is file


def test_a_request_keeps_what_is_forgotten_under_it(inodes: InodeMap) -> None:
    nodeid = inodes.lookup(a_file(), some_attr()._replace(ino=5)).nodeid
    file = inodes.open(nodeid)
    inodes.forget(nodeid, 1)
    assert os.readlink(f"/proc/self/fd/{file.fd}") == "/"


def test_closing_what_is_not_open_is_a_fault() -> None:
    file = a_file()
    os.close(file.fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.__del__()
    file.fd = os.open("/", os.O_PATH)
