"""The door of a checkout, tried on copies of the script with stand-ins for what it would install.

The real thing, from nothing to a mount, is what CI's `.ci/run` does.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNPRIVILEGED = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
FEW_TOOLS = ["bash", "cat", "dirname", "env", "find", "flock", "id", "readlink", "setpriv"]
FEW_TOOLS += ["sha256sum", "sort", "stat"]


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout() -> Generator[Path]:
    """A checkout with the files that the script reads, and no .venv.

    It is not below pytest's directory, which other users may not search.
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield copy_checkout(Path(directory, "a checkout"))


def copy_checkout(root: Path) -> Path:
    (root / "uringfs/ring").mkdir(parents=True)
    for name in ("bootstrap.sh", "pyproject.toml", "setup.py", "uringfs/ring/_build.py"):
        shutil.copy(ROOT / name, root / name)
    for name in ("csrc", "cdef"):
        shutil.copytree(ROOT / "uringfs/ring" / name, root / "uringfs/ring" / name)
    return root


@pytest.fixture
def few_tools(checkout: Path) -> Path:
    """A directory for PATH with what the script itself calls: no compiler, no apt."""
    directory = checkout / "bin"
    directory.mkdir()
    for tool in FEW_TOOLS:
        source = shutil.which(tool)
        assert source
        (directory / tool).symlink_to(source)
    return directory


@pytest.fixture
def pip_log(checkout: Path) -> Path:
    """Gives the checkout a .venv whose python only notes that pip was asked to install."""
    log = checkout / "pip.log"
    write_script(
        checkout / ".venv/bin/python",
        f'#!/bin/sh\ncase "$*" in *install*) echo "$@" >> "{log}" ;; esac\n',
    )
    write_script(checkout / ".venv/bin/uringfs", '#!/bin/sh\npwd\nprintf "<%s>" "$@"\n')
    return log


def run(
    checkout: Path, *arguments: str, prefix: list[str] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(prefix or []), str(checkout / "bootstrap.sh"), *arguments],
        env=os.environ | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_command(checkout: Path) -> None:
    done = run(checkout, "help")
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in ("mount", "test", "build", "help"))


@pytest.mark.parametrize("arguments", [(), ("frobnicate",)])
def test_a_wrong_command_is_a_usage_error(checkout: Path, arguments: tuple[str, ...]) -> None:
    done = run(checkout, *arguments)
    assert done.returncode == 2
    assert "mount" in done.stderr
    assert done.stdout == ""


def test_the_tests_ask_for_root(checkout: Path) -> None:
    done = run(checkout, "test", prefix=UNPRIVILEGED)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "sudo" in done.stderr


def test_an_old_python_is_named(checkout: Path) -> None:
    old = checkout / "old"
    write_script(old, '#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 || exit 1\n')
    done = run(checkout, "build", PYTHON=str(old))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "3.11" in done.stderr
    assert "3.9.2" in done.stderr


def test_without_apt_the_missing_packages_are_named(checkout: Path, few_tools: Path) -> None:
    done = run(checkout, "build", PATH=str(few_tools))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "apt" in done.stderr
    assert "gcc" in done.stderr
    assert "liburing-dev" in done.stderr


def test_packages_need_root(checkout: Path, few_tools: Path) -> None:
    write_script(few_tools / "apt-get", "#!/bin/sh\nexit 1\n")
    done = run(checkout, "build", prefix=UNPRIVILEGED, PATH=str(few_tools))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "sudo" in done.stderr


def test_mount_gets_its_arguments_where_the_caller_stands(checkout: Path, pip_log: Path) -> None:
    done = run(checkout, "mount", "-o", "a b", "source", "")
    assert (done.returncode, done.stdout) == (0, "/\n<mount><-o><a b><source><>")
    assert pip_log.read_text().count("install") == 1


def test_only_a_change_of_what_is_built_builds_again(checkout: Path, pip_log: Path) -> None:
    def builds() -> int:
        done = run(checkout, "build")
        assert done.returncode == 0, done.stderr
        count = pip_log.read_text().count("--editable")
        pip_log.write_text("")
        return count

    assert [builds(), builds()] == [1, 0]
    for name in ("pyproject.toml", "uringfs/ring/_build.py", "uringfs/ring/csrc/new.c"):
        with (checkout / name).open("a") as file:
            file.write("\n")
        assert [builds(), builds()] == [1, 0], name
    (checkout / "uringfs/module.py").write_text("")
    assert builds() == 0


def test_what_was_made_for_the_tests_mounts_too(checkout: Path, pip_log: Path) -> None:
    assert run(checkout, "test", "-k", "nothing").returncode == 0
    assert "[dev]" in pip_log.read_text()
    pip_log.write_text("")
    assert run(checkout, "mount", "source", "mountpoint").returncode == 0
    assert run(checkout, "test", "-k", "nothing").returncode == 0
    assert pip_log.read_text() == ""


SUITE = """#!/bin/sh
case "$*" in
    *install*|*-c*) exit 0 ;;
    *--last-failed*) echo "$@" >> "{log}"; exit {alone} ;;
    *{suite}*) for i in $(seq {count}); do echo "FAILED tests/test_$i.py"; done; exit 1 ;;
esac
"""


@pytest.mark.parametrize("suite", ["tests/mount", "--ignore=tests/mount"])
@pytest.mark.parametrize(
    ("count", "alone", "status"), [(1, 0, 0), (3, 0, 0), (3, 1, 1), (4, 0, 1), (0, 0, 1)]
)
def test_what_fails_alone_fails(
    checkout: Path, pip_log: Path, suite: str, count: int, alone: int, status: int
) -> None:
    """A few tests that failed beside the other suites are run once more, by themselves."""
    script = SUITE.format(log=pip_log, alone=alone, suite=suite, count=count)
    write_script(checkout / ".venv/bin/tox", "#!/bin/sh\n")
    assert run(checkout, "build").returncode == 0
    write_script(checkout / ".venv/bin/python", script.replace("*tests/mount*", "*' tests/mount'*"))
    done = run(checkout, "test")
    assert done.returncode == status
    assert done.stderr.count("FAILED") == count
    repeated = pip_log.read_text() if pip_log.exists() else ""
    assert (suite in repeated) == (0 < count <= 3)


def test_only_the_environments_that_failed_are_run_again(checkout: Path, pip_log: Path) -> None:
    write_script(
        checkout / ".venv/bin/tox",
        f'#!/bin/sh\necho "$@" >> "{pip_log}"\ncase "$*" in *--last-failed*) exit 0 ;; esac\n'
        'printf "FAILED tests/x.py\\n  lint: OK (1)\\n  py312: FAIL code 1\\n"\nexit 1\n',
    )
    done = run(checkout, "test")
    assert done.returncode == 0, done.stderr
    first, second = [each for each in pip_log.read_text().splitlines() if each.startswith("run ")]
    assert "lint,types,sanitize" in first
    assert "-e py312 " in second


def test_a_failed_build_is_tried_again(checkout: Path, pip_log: Path) -> None:
    python = checkout / ".venv/bin/python"
    good = python.read_text()
    write_script(python, '#!/bin/sh\ncase "$*" in *install*) exit 1 ;; esac\n')
    failed = run(checkout, "mount", "source", "mountpoint")
    assert (failed.returncode, failed.stdout) == (1, "")
    write_script(python, good)
    assert run(checkout, "build").returncode == 0
    assert pip_log.exists()


def test_another_users_checkout_stays_theirs(checkout: Path, pip_log: Path) -> None:
    os.chown(checkout, 65534, 65534)
    assert run(checkout, "build").returncode == 0
    made = [*(checkout / ".venv").rglob("*"), checkout / ".venv"]
    assert {path.lstat().st_uid for path in made} == {65534}


def test_a_venv_of_root_is_explained_to_others(checkout: Path, pip_log: Path) -> None:
    assert run(checkout, "build", prefix=UNPRIVILEGED).stderr.endswith(
        ".venv belongs to root: run as that user, or with sudo\n"
    )
    assert not pip_log.exists()


def test_two_at_once_build_once(checkout: Path, pip_log: Path) -> None:
    command = [str(checkout / "bootstrap.sh"), "build"]
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert pip_log.read_text().count("--editable") == 1


def test_this_interpreter_would_do(checkout: Path) -> None:
    """The choice itself, up to the first step after it: `-m venv`, refused here."""
    wrapper = checkout / "python"
    write_script(wrapper, f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (checkout / ".venv").write_text("in the way")
    done = run(checkout, "build", PYTHON=str(wrapper))
    assert done.returncode == 1
    assert f"making .venv with {os.path.realpath(sys.executable)}" in done.stderr
