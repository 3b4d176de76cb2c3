"""Acting as somebody else: what it does to new files, and that nothing of it is left behind."""

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from uringfs.fs import credentials, syscalls
from uringfs.fs.credentials import acting_as, without_fsetid
from uringfs.fs.types import Caller

USER, GROUP, TEAM, CREW = 4321, 8765, 9999, 7777
CALLER = Caller(USER, GROUP, groups=(TEAM, CREW))
FIELDS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb")


def identity() -> dict[str, list[str]]:
    """The credentials of this thread, as the kernel has them."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return {name: fields[name] for name in FIELDS}


@pytest.fixture(autouse=True)
def own() -> Generator[dict[str, list[str]]]:
    """The server's own credentials and groups, which a test has to leave as they are."""
    groups = os.getgroups()
    os.setgroups([11, 12])
    before = identity()
    try:
        yield before
        assert identity() == before
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
    with acting_as(CALLER):
        (open_dir / "file").touch()
    assert owner_of(open_dir / "file") == (USER, GROUP)


def test_the_thread_has_the_callers_ids_and_groups() -> None:
    with acting_as(CALLER):
        acting = identity()
    assert acting["Uid"] == ["0", str(USER), "0", str(USER)]  # real, effective, saved, file system
    assert acting["Gid"] == ["0", str(GROUP), "0", str(GROUP)]
    assert sorted(acting["Groups"]) == sorted(map(str, (TEAM, CREW)))
    assert int(acting["CapEff"][0], 16) == 0


@pytest.mark.parametrize("groups", [None, ()])
def test_a_caller_without_groups_has_none_of_the_servers(groups: tuple[int, ...] | None) -> None:
    with acting_as(Caller(USER, GROUP, groups=groups)):
        assert identity()["Groups"] == []


def test_a_group_lets_into_a_directory(open_dir: Path) -> None:
    team = open_dir / "team"
    team.mkdir()
    os.chown(team, 0, TEAM)
    team.chmod(0o770)
    with acting_as(CALLER):
        (team / "file").touch()
    with acting_as(CALLER._replace(groups=())), pytest.raises(PermissionError):
        (team / "other").touch()


def test_a_setgid_directory_gives_its_group_and_its_bit(open_dir: Path) -> None:
    os.chown(open_dir, 0, TEAM)
    open_dir.chmod(0o2777)
    with acting_as(CALLER._replace(groups=())):
        (open_dir / "file").touch()
        (open_dir / "sub").mkdir()
    assert owner_of(open_dir / "file") == (USER, TEAM)
    assert owner_of(open_dir / "sub") == (USER, TEAM)
    assert (open_dir / "sub").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize(("groups", "kept"), [((TEAM,), True), ((), False)])
def test_setgid_of_a_new_file_is_for_members(
    open_dir: Path, groups: tuple[int, ...], kept: bool
) -> None:
    os.chown(open_dir, 0, TEAM)
    open_dir.chmod(0o2777)
    with acting_as(CALLER._replace(groups=groups)):
        os.close(os.open(open_dir / "file", os.O_CREAT | os.O_WRONLY, 0o2775))
    assert bool((open_dir / "file").stat().st_mode & stat.S_ISGID) == kept


def test_root_of_another_group_keeps_its_capabilities(open_dir: Path) -> None:
    own = identity()
    with acting_as(Caller(0, GROUP)):
        assert identity()["CapEff"] == own["CapEff"]
        (open_dir / "file").touch()
    assert owner_of(open_dir / "file") == (0, GROUP)


@pytest.mark.parametrize("caller", [None, Caller(0, 0), Caller(0, 0, groups=(TEAM,))])
def test_root_and_nobody_change_nothing(caller: Caller | None) -> None:
    own = identity()
    with acting_as(caller):
        assert identity() == own


@pytest.mark.parametrize(("wanted", "left"), [(True, 0), (False, stat.S_ISUID | stat.S_ISGID)])
def test_without_fsetid_a_write_clears_set_id_bits(tmp_path: Path, wanted: bool, left: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o6755)
    with path.open("wb", buffering=0) as file, without_fsetid(wanted):
        file.write(b"x")
    assert path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID) == left


def test_without_fsetid_takes_that_one_capability(own: dict[str, list[str]]) -> None:
    with without_fsetid(True):
        acting = identity()
    lost = int(own["CapEff"][0], 16) ^ int(acting["CapEff"][0], 16)
    assert lost == credentials.CAP_FSETID
    assert {**acting, "CapEff": own["CapEff"]} == own


def test_both_together(open_dir: Path) -> None:
    with acting_as(CALLER), without_fsetid(True):
        (open_dir / "file").touch()
    assert owner_of(open_dir / "file") == (USER, GROUP)


def test_an_exception_inside_leaves_nothing(own: dict[str, list[str]]) -> None:
    with pytest.raises(ZeroDivisionError), acting_as(CALLER), without_fsetid(True):
        raise ZeroDivisionError
    assert identity() == own


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


@pytest.mark.parametrize("made", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("function", "number"),
    # setgroups, setresgid and setresuid go through syscall(2); then come capget and capset.
    [("_syscall", 1), ("_syscall", 2), ("_syscall", 3), ("_capget", 1), ("_capset", 1)],
)
def test_a_failure_on_the_way_leaves_nothing(
    function: str,
    number: int,
    made: bool,
    own: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing = Failing(getattr(syscalls, function), number, made)
    monkeypatch.setattr(syscalls, function, failing)
    with pytest.raises(MemoryError), acting_as(CALLER), without_fsetid(True):
        pytest.fail("it was entered")
    assert identity() == own


def test_other_threads_stay_who_they_are(own: dict[str, list[str]], open_dir: Path) -> None:
    acting, looked = threading.Event(), threading.Event()
    seen: list[dict[str, list[str]]] = []

    def act() -> None:
        with acting_as(CALLER), without_fsetid(True):
            seen.append(identity())
            acting.set()
            looked.wait(10)
        seen.append(identity())

    thread = threading.Thread(target=act)
    thread.start()
    assert acting.wait(10)
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
import importlib.util, os
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
    with credentials.acting_as(caller), credentials.without_fsetid(True):
        assert identity() == before
        open("file", "w").close()
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
