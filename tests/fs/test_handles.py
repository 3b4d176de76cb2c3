"""HandleMap against a model: the table that compiled code reads, and the objects beside it."""

import os
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.mount.trees import outcome_of
from uringfs.fs import handles as module
from uringfs.fs.handles import CAPACITY, ENTRY, FAST, LOCKED, MEMORY, HandleMap
from uringfs.fs.types import OwnedFd

SMALL = 6  # rows, the first of which is no handle's
NODEIDS = st.sampled_from([1, 2, 2**64 - 1])
FLAGS = st.sampled_from([os.O_RDONLY, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_DIRECT])
TRAITS = st.sampled_from([0, FAST, FAST | MEMORY])


@dataclass
class Open:
    """What the model remembers of an open file."""

    nodeid: int
    fd: int
    flags: int
    traits: int
    in_flight: int = 0


def a_file() -> OwnedFd:
    return OwnedFd(os.open("/", os.O_PATH))


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def row(handles: HandleMap, index: int) -> tuple[int, ...]:
    return ENTRY.unpack_from(handles.table, index * ENTRY.size)


def set_in_flight(handles: HandleMap, index: int, count: int) -> None:
    """What compiled code does when a transfer begins or ends."""
    fields = row(handles, index)
    ENTRY.pack_into(handles.table, index * ENTRY.size, *fields[:4], count, fields[5])


class HandleMachine(RuleBasedStateMachine):
    """Opens and releases in a table of few rows, while transfers come and go."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "CAPACITY", SMALL)
        self.handles = HandleMap()
        self.handles.before_close = self.before_close
        self.known: dict[int, Open] = {}
        self.given: set[int] = set()
        self.in_flight = dict.fromkeys(range(SMALL), 0)
        self.locked = False
        self.closing: int | None = None
        self.calls = 0

    def before_close(self) -> None:
        self.calls += 1
        assert self.closing is not None
        index = self.closing & 0xFFFFFFFF
        assert row(self.handles, index)[:4] == (-1, 0, 0, 0), "a new transfer could still begin"
        assert is_open(self.known[self.closing].fd), "the transfer lost its file"

    @rule(nodeid=NODEIDS, flags=FLAGS, traits=TRAITS)
    def insert(self, nodeid: int, flags: int, traits: int) -> None:
        file = a_file()
        fd = file.fd
        if len(self.known) == SMALL - 1:
            assert outcome_of(self.handles.insert, nodeid, file, flags, traits).error == "ENFILE"
            return
        fh = self.handles.insert(nodeid, file, flags, traits)
        assert fh not in self.given
        assert 0 < fh & 0xFFFFFFFF < SMALL
        self.given.add(fh)
        self.known[fh] = Open(nodeid, fd, flags, traits)

    @rule(nodeid=NODEIDS, flags=FLAGS, traits=TRAITS)
    def fill_elsewhere(self, nodeid: int, flags: int, traits: int) -> None:
        """As compiled code does."""
        if len(self.known) == SMALL - 1:
            assert outcome_of(self.handles.reserve).error == "ENFILE"
            return
        fh, fd = self.handles.reserve(), os.open("/", os.O_PATH)
        index = fh & 0xFFFFFFFF
        assert fh not in self.given
        assert row(self.handles, index)[3] == 0, "it would be open"
        fields = fd, flags | traits, fh, nodeid, self.in_flight[index], 0
        ENTRY.pack_into(self.handles.table, index * ENTRY.size, *fields)
        self.handles.filled(index)
        self.given.add(fh)
        self.known[fh] = Open(nodeid, fd, flags, traits)

    @rule(data=st.data(), count=st.integers(0, 3))
    def transfer(self, data: st.DataObject, count: int) -> None:
        index = data.draw(st.integers(1, SMALL - 1), "index")
        set_in_flight(self.handles, index, count)
        self.in_flight[index] = count

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        fh = data.draw(st.sampled_from(sorted(self.known)), "fh")
        calls = self.calls
        self.closing = fh
        self.handles.release(fh, self.known[fh].nodeid)
        self.closing = None
        assert self.calls - calls == (self.in_flight[fh & 0xFFFFFFFF] > 0)
        assert not is_open(self.known.pop(fh).fd)

    @rule(data=st.data(), nodeid=NODEIDS)
    def use_wrongly(self, data: st.DataObject, nodeid: int) -> None:
        wrong = st.sampled_from([0, 1, 1 << 32, 2**64 - 1, *sorted(self.given)])
        fh = data.draw(wrong, "fh")
        if fh in self.known and self.known[fh].nodeid == nodeid:
            return
        for use in (self.handles.get, self.handles.release):
            assert outcome_of(use, fh, nodeid).error == "EBADF"
        if fh not in self.known:
            assert outcome_of(self.handles.nodeid_of, fh).error == "EBADF"

    @rule(on=st.booleans())
    def lock(self, on: bool) -> None:
        self.handles.set_locked(on)
        self.locked = on

    @rule()
    def clear(self) -> None:
        for index in range(1, SMALL):
            set_in_flight(self.handles, index, 0)
            self.in_flight[index] = 0
        self.handles.clear()
        assert not any(is_open(known.fd) for known in self.known.values())
        self.known.clear()

    @invariant()
    def table_and_objects_agree(self) -> None:
        expected = dict.fromkeys(range(1, SMALL), (-1, 0, 0, 0))
        for fh, known in self.known.items():
            expected[fh & 0xFFFFFFFF] = (known.fd, known.flags | known.traits, fh, known.nodeid)
        for index, fields in expected.items():
            found = row(self.handles, index)
            if found[2] or fields[2]:
                assert found[:4] == fields
            assert found[4] == self.in_flight[index]
        for fh, known in self.known.items():
            handle = self.handles.get(fh, known.nodeid)
            assert (handle.fh, handle.nodeid) == (fh, known.nodeid)
            assert (handle.file.fd, handle.flags) == (known.fd, known.flags)
            assert self.handles.nodeid_of(fh) == known.nodeid
        assert {handle.fh for handle in self.handles} == set(self.known)
        assert len(self.handles) == len(self.known)

    @invariant()
    def first_row_tells_of_locks(self) -> None:
        assert row(self.handles, 0)[2] == 0, "it would be a file"
        assert bool(row(self.handles, 0)[1] & LOCKED) == self.locked

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()


HandleMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestHandleMap = HandleMachine.TestCase


def test_the_table_has_a_row_for_each_file_that_can_be_open() -> None:
    assert len(HandleMap().table) == CAPACITY * ENTRY.size


def test_a_row_is_not_written_behind_the_back_of_compiled_code() -> None:
    handles = HandleMap()
    index = handles.insert(2, a_file(), 0) & 0xFFFFFFFF
    set_in_flight(handles, index, 7)
    handles.clear()
    assert handles.insert(2, a_file(), 0) & 0xFFFFFFFF == index
    assert row(handles, index)[4] == 7


def test_the_serial_number_goes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = HandleMap()
    monkeypatch.setattr(handles, "_serial", 0xFFFFFFFE)
    given = [handles.insert(2, a_file(), 0) for _ in range(3)]
    assert all(0 < fh < 2**64 for fh in given)
    assert [handles.nodeid_of(fh) for fh in given] == [2, 2, 2]


def test_a_request_keeps_what_is_released_under_it() -> None:
    handles = HandleMap()
    fh = handles.insert(2, a_file(), 0)
    file = handles.get(fh, 2).file
    handles.release(fh, 2)
    assert os.readlink(f"/proc/self/fd/{file.fd}") == "/"
