"""Acting as somebody else: what it does to new files, and that nothing of it is left behind."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from uringfs.fs import credentials, syscalls
from uringfs.fs.credentials import acting, resolved
from uringfs.fs.types import Caller

USER, GROUP, TEAM, CREW = 4321, 8765, 9999, 7777
CALLER = Caller(USER, GROUP, groups=(TEAM, CREW))
FIELDS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb")

Identity = dict[str, list[str]]


def identity(thread: str = "thread-self") -> Identity:
    """The credentials of a thread, as the kernel has them; real, effective, saved and fs ids."""
    lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return {name: fields[name] for name in FIELDS}


def identities() -> list[Identity]:
    """Those of every thread of this process, each once, but for io_uring's own threads."""
    different: list[Identity] = []
    for thread in os.listdir("/proc/self/task"):
        try:
            if Path(f"/proc/self/task/{thread}/comm").read_text().startswith("iou-"):
                continue
            one = identity(f"self/task/{thread}")
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if one not in different:
            different.append(one)
    return different


@pytest.fixture(autouse=True)
def own() -> Generator[Identity]:
    """The server's own credentials and groups, which a test has to leave as they are."""
    groups = os.getgroups()
    os.setgroups([11, 12])
    before = identity()
    try:
        yield before
        assert identities() == [before]
    finally:
        os.setgroups(groups)


@pytest.fixture
def open_dir() -> Generator[Path]:
    """A directory that everybody may write in and reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


def owner_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


def test_a_new_file_is_the_callers(open_dir: Path) -> None:
    acting(CALLER, False, (open_dir / "file").touch)
    assert owner_of(open_dir / "file") == (USER, GROUP)


def test_what_the_call_returns_is_returned() -> None:
    assert acting(CALLER, False, lambda: 7) == 7


def test_the_thread_has_the_callers_ids_and_groups() -> None:
    there = acting(CALLER, False, identity)
    assert there["Uid"] == ["0", str(USER), "0", str(USER)]  # real, effective, saved, file system
    assert there["Gid"] == ["0", str(GROUP), "0", str(GROUP)]
    assert sorted(there["Groups"]) == sorted(map(str, (TEAM, CREW)))
    assert int(there["CapEff"][0], 16) == 0


def test_a_caller_without_groups_has_none_of_the_servers() -> None:
    assert acting(Caller(USER, GROUP, groups=()), False, identity)["Groups"] == []


def test_groups_that_the_session_is_not_told_are_those_of_the_process(own: Identity) -> None:
    asking = Caller(USER, GROUP, os.getpid())
    assert resolved(asking).groups == (11, 12)
    assert acting(asking, False, identity)["Groups"] == ["11", "12"]
    assert resolved(asking._replace(groups=(TEAM,))).groups == (TEAM,)
    assert resolved(asking._replace(uid=0)).groups == ()


@pytest.mark.parametrize("pid", [0, 2**31 - 1])
def test_a_process_that_is_not_to_be_seen_has_no_groups(pid: int) -> None:
    assert resolved(Caller(USER, GROUP, pid)).groups == ()


def test_a_group_lets_into_a_directory(open_dir: Path) -> None:
    team = open_dir / "team"
    team.mkdir()
    os.chown(team, 0, TEAM)
    team.chmod(0o770)
    acting(CALLER, False, (team / "file").touch)
    with pytest.raises(PermissionError):
        acting(CALLER._replace(groups=()), False, (team / "other").touch)


def test_a_setgid_directory_gives_its_group_and_its_bit(open_dir: Path) -> None:
    os.chown(open_dir, 0, TEAM)
    open_dir.chmod(0o2777)
    stranger = CALLER._replace(groups=())
    acting(stranger, False, (open_dir / "file").touch)
    acting(stranger, False, (open_dir / "sub").mkdir)
    assert owner_of(open_dir / "file") == (USER, TEAM)
    assert owner_of(open_dir / "sub") == (USER, TEAM)
    assert (open_dir / "sub").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize(("groups", "kept"), [((TEAM,), True), ((), False)])
def test_setgid_of_a_new_file_is_for_members(
    open_dir: Path, groups: tuple[int, ...], kept: bool
) -> None:
    os.chown(open_dir, 0, TEAM)
    open_dir.chmod(0o2777)
    creating = partial(os.open, open_dir / "file", os.O_CREAT | os.O_WRONLY, 0o2775)
    os.close(acting(CALLER._replace(groups=groups), False, creating))
    assert bool((open_dir / "file").stat().st_mode & stat.S_ISGID) == kept


def test_root_of_another_group_keeps_its_capabilities(own: Identity, open_dir: Path) -> None:
    assert acting(Caller(0, GROUP), False, identity)["CapEff"] == own["CapEff"]
    acting(Caller(0, GROUP), False, (open_dir / "file").touch)
    assert owner_of(open_dir / "file") == (0, GROUP)


@pytest.mark.parametrize("caller", [None, Caller(0, 0), Caller(0, 0, groups=(TEAM,))])
def test_root_and_nobody_change_nothing(own: Identity, caller: Caller | None) -> None:
    assert acting(caller, False, identity) == own


def test_root_that_must_not_keep_set_id_bits_has_the_callers_groups() -> None:
    """The server's own could be the file's, whose members keep its bit."""
    assert acting(Caller(0, 0, groups=(TEAM,)), True, identity)["Groups"] == [str(TEAM)]


@pytest.mark.parametrize(("kill", "left"), [(True, 0), (False, stat.S_ISUID | stat.S_ISGID)])
def test_without_fsetid_a_write_clears_set_id_bits(tmp_path: Path, kill: bool, left: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o6755)
    with path.open("wb", buffering=0) as file:
        acting(None, kill, partial(file.write, b"x"))
    assert path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID) == left


def test_without_fsetid_lacks_that_one_capability(own: Identity) -> None:
    there = acting(None, True, identity)
    lost = int(own["CapEff"][0], 16) ^ int(there["CapEff"][0], 16)
    assert lost == credentials.CAP_FSETID
    assert {**there, "CapEff": own["CapEff"]} == own


def test_a_user_without_fsetid_has_no_capability_either() -> None:
    there = acting(CALLER, True, identity)
    assert (there["Uid"][1], int(there["CapEff"][0], 16)) == (str(USER), 0)


class Interrupted(BaseException):
    """Comes out of nowhere, as KeyboardInterrupt and MemoryError do."""


class Interruption:
    """Raises before the ``number``th instruction of what switches credentials, once."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in (credentials.__file__, syscalls.__file__):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                raise Interrupted
        return self


def refused() -> None:
    raise PermissionError


@pytest.mark.parametrize("call", [identity, refused])
@pytest.mark.parametrize(
    ("caller", "kill"),
    [(CALLER, False), (CALLER._replace(groups=None), True), (None, True), (Caller(0, GROUP), True)],
)
def test_an_exception_anywhere_leaves_every_thread_itself(
    own: Identity, caller: Caller | None, kill: bool, call: Callable[[], object]
) -> None:
    def interrupted(number: int) -> bool:
        interruption = Interruption(number)
        # Python 3.12 tells of instructions only if some frame asked for it before.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(interruption)
        try:
            acting(caller, kill, call)
        except Interrupted:
            return True
        except PermissionError:
            assert call is refused
        finally:
            sys.settrace(None)
        # It may have been taken for a failure of the way back, which was then made again.
        return interruption.left <= 0

    with ThreadPoolExecutor(1) as pool:
        number = 1
        while pool.submit(interrupted, number).result():
            assert identities() == [own], f"interrupted before instruction {number}"
            number += 1
    assert number > 100, "nothing was interrupted"


class Failing:
    """Stands before a function and lets its ``number``th call fail, before or after it is made."""

    def __init__(self, function: Callable[..., Any], number: int, made: bool) -> None:
        self.function = function
        self.number = number
        self.made = made

    def __call__(self, *args: Any) -> Any:
        self.number -= 1
        if self.number:
            return self.function(*args)
        if self.made:
            self.function(*args)
        raise MemoryError


# setgroups, setresgid and setresuid on the way there, the other way round on the way back; for
# a caller who is root, capget before and capset on both ways.
STEPS = [("_syscall", number) for number in range(1, 7)]
STEPS += [("_capget", 1), ("_capset", 1), ("_capset", 2)]


@pytest.mark.parametrize("made", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("function", "number"), STEPS)
def test_a_failing_system_call_leaves_nothing(
    function: str, number: int, made: bool, own: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(getattr(syscalls, function), number, made)
    monkeypatch.setattr(syscalls, function, failing)
    with pytest.raises(MemoryError):
        acting(Caller(0, GROUP, groups=(TEAM,)), True, lambda: None)
    assert failing.number <= 0
    assert identities() == [own]


NO_WAY_BACK = """
from uringfs.fs import credentials, syscalls
from uringfs.fs.types import Caller
there = syscalls.set_thread_ids
syscalls.set_thread_ids = lambda uid, gid: there(uid, gid) if uid else 1 / 0
try:
    credentials.acting(Caller(4321, 8765, groups=()), False, lambda: print("there", flush=True))
finally:
    print("went on", flush=True)
"""


def test_without_a_way_back_the_process_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_WAY_BACK], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, "there\n")
    assert "cannot take back the server's own credentials" in done.stderr


NOT_ALLOWED = """
import os
from uringfs.fs.credentials import acting
from uringfs.fs.types import Caller
for uid, gid in ((4321, 8765), (0, 8765), (4321, 0)):
    try:
        acting(Caller(uid, gid, groups=()), False, lambda: print("got there"))
    except PermissionError:
        print(os.getresuid(), os.getresgid(), os.getgroups())
"""


@pytest.mark.parametrize("lacking", ["setgid", "setuid"])
def test_a_root_that_may_not_become_others_fails_and_stays_itself(lacking: str) -> None:
    command = ["setpriv", "--clear-groups", f"--bounding-set=-{lacking}", sys.executable, "-c"]
    done = subprocess.run(
        [*command, NOT_ALLOWED], capture_output=True, text=True, timeout=30, check=True
    )
    itself = "(0, 0, 0) (0, 0, 0) []"
    who_got_there = {"setgid": [], "setuid": ["got there"]}[lacking]
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == [itself] * (3 - len(who_got_there)) + who_got_there


def test_other_threads_stay_who_they_are(own: Identity, open_dir: Path) -> None:
    is_there, looked = threading.Event(), threading.Event()
    seen: list[Identity] = []

    def look() -> None:
        seen.append(identity())
        is_there.set()
        looked.wait(10)

    def act() -> None:
        acting(CALLER, True, look)
        seen.append(identity())

    thread = threading.Thread(target=act)
    thread.start()
    assert is_there.wait(10)
    here = identity()
    (open_dir / "file").touch()
    looked.set()
    thread.join()
    assert here == own
    assert owner_of(open_dir / "file") == (0, 0)
    assert seen[0]["Uid"] != own["Uid"]
    assert seen[1] == own


# The module looks at its user when it is imported; an interpreter in root's home can be read by
# root only, so all that is needed is read before.
NOT_ROOT = f"""
import importlib.util, logging, os
from uringfs.fs.types import Caller
import uringfs.fs.syscalls
spec = importlib.util.find_spec("uringfs.fs.credentials")
credentials, code = importlib.util.module_from_spec(spec), spec.loader.get_code(spec.name)
os.setgroups([]), os.setresgid({USER}, {USER}, {USER}), os.setresuid({USER}, {USER}, {USER})
exec(code, credentials.__dict__)
def identity():
    with open("/proc/thread-self/status") as lines:
        return [line for line in lines if line.startswith(("Uid", "Gid", "Groups", "Cap"))]
before = identity()
for caller in (Caller(1, 1, groups=({TEAM},)), Caller(0, 0), None):
    assert credentials.acting(caller, True, identity) == before
    credentials.acting(caller, True, open("file", "w").close)
    assert os.stat("file").st_uid == {USER}
    os.unlink("file")
print("as I was")
"""


def test_a_server_that_is_not_root_changes_nothing(open_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOT_ROOT], cwd=open_dir, capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONPATH": str(Path(credentials.__file__).parents[2])},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("as I was\n", "")
