"""What a stranger gets: built by packaging/, installed where nothing of ours was before."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import uringfs
from uringfs.errors import Exit

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.mount, pytest.mark.timeout(400)]


def run(*command: str | Path, cwd: Path, status: int = 0, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two directories, in which the same was built at the same time, by different paths."""
    directories = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("the other")
    env = os.environ | {"PYTHON": sys.executable, "SOURCE_DATE_EPOCH": "1700000000"}
    running = [
        subprocess.Popen(
            [ROOT / "packaging/build.sh", directory],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for directory in directories
    ]  # fmt: skip
    for process in running:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return directories


@pytest.fixture(scope="module")
def sdist(built: tuple[Path, Path]) -> Path:
    [path] = built[0].glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    [path] = built[0].glob("*.whl")
    return path


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A fresh virtual environment with the wheel, installed where there is no compiler."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", directory, cwd=directory.parent)
    pip = directory / "bin/pip"
    env = {"PATH": str(directory / "bin")}
    run(pip, "install", "--quiet", "--only-binary=:all:", wheel, cwd=directory.parent, env=env)
    return directory


def test_the_same_source_gives_the_same_bytes(built: tuple[Path, Path]) -> None:
    first, second = ({p.name: p.read_bytes() for p in each.iterdir()} for each in built)
    assert len(first) == 2
    assert first == second


def test_the_sdist_has_what_its_reader_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "-c", "safe.directory=*", "ls-files", cwd=ROOT).splitlines())
    wanted = {
        name
        for name in tracked
        if name.startswith(("docs/", "packaging/", "tests/", "uringfs/")) or "/" not in name
    }
    assert wanted - names == {".gitignore"}
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_the_wheel_serves_every_python_and_needs_libc_alone(venv: Path, wheel: Path) -> None:
    assert "-cp311-abi3-manylinux_2_" in wheel.name
    libc = wheel.name.partition("-manylinux_2_")[2].partition("_")[0]
    assert f"glibc 2.{libc} or newer" in (ROOT / "docs/install.md").read_text()
    [extension] = venv.glob("lib/python*/site-packages/uringfs/ring/_uring.abi3.so")
    needed = run("readelf", "--dynamic", extension, cwd=venv)
    found = re.findall(r"\((NEEDED|RPATH|RUNPATH)\).*\[(.*)\]", needed)
    assert ("NEEDED", "libc.so.6") in found
    # The loader is of libc, too, and has what finds a thread's own variables.
    others = [each for each in found if not re.fullmatch(r"(libc|ld-linux-.*)\.so\.\d", each[1])]
    assert others == []


def test_only_what_runs_is_installed(venv: Path) -> None:
    [package] = venv.glob("lib/python*/site-packages/uringfs")
    assert (package / "py.typed").exists()
    suffixes = {path.suffix for path in package.rglob("*") if path.is_file()}
    assert suffixes == {".py", ".pyc", ".so", ".typed"}
    assert not (package.parent / "tests").exists()
    run(venv / "bin/pip", "check", cwd=venv)


def test_it_serves_a_mount(venv: Path, tmp_path: Path) -> None:
    for name in ("source", "mountpoint"):
        (tmp_path / name).mkdir()
    (tmp_path / "source/file").write_text("there")
    command, env = venv / "bin/uringfs", {"PATH": "/nonexistent"}
    assert uringfs.__version__ in run(command, "--version", cwd=tmp_path, env=env)
    run(command, "mount", "--daemon", "--async-io", "source", "mountpoint", cwd=tmp_path, env=env)
    try:
        assert (tmp_path / "mountpoint/file").read_text() == "there"
        status = json.loads(run(command, "ctl", "mountpoint", "status", cwd=tmp_path, env=env))
        assert (status["session"], status["io"]) == ("dev", "io_uring")
    finally:
        run(command, "umount", "--lazy", "mountpoint", cwd=tmp_path, env=env)


def test_the_extra_is_named_where_it_is_asked_for(venv: Path, tmp_path: Path) -> None:
    for name in ("source", "mountpoint"):
        (tmp_path / name).mkdir()
    words = ("mount", "--log-level=error", "--session=pyfuse3", "source", "mountpoint")
    said = run(venv / "bin/uringfs", *words, cwd=tmp_path, status=Exit.FUSE)
    assert said.count("\n") == 1
    assert f"{venv}/bin/python" in said
    assert "-m pip install pyfuse3" in said


def test_a_debian_package_is_made_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHON": sys.executable}
    run(ROOT / "packaging/deb.sh", wheel.parent, cwd=tmp_path, env=env)
    [deb] = wheel.parent.glob("*.deb")
    try:
        fields = run("dpkg-deb", "--field", deb, cwd=tmp_path)
        assert f"Version: {uringfs.__version__}-1\n" in fields
        run("dpkg-deb", "--extract", deb, tmp_path, cwd=tmp_path)
    finally:
        deb.unlink()
    share = tmp_path / "usr/share"
    pages = {path.name for path in share.glob("man/man?/*.gz")}
    assert {"uringfs.1.gz", "uringfs-mount.1.gz", "mount.uringfs.8.gz"} <= pages
    for completion in (
        "bash-completion/completions/uringfs",
        "zsh/vendor-completions/_uringfs",
        "fish/vendor_completions.d/uringfs.fish",
    ):
        assert "--config" in (share / completion).read_text().replace("-l config", "--config")
    assert (tmp_path / "usr/lib/systemd/system/uringfs@.service").exists()
    assert (tmp_path / "etc/uringfs").is_dir()
    for example in ("grafana.json", "seccomp-uringfs.json"):
        assert json.loads((share / "doc/uringfs" / example).read_text())
    assert not list(tmp_path.rglob("__pycache__"))
    env = {"PYTHONPATH": str(tmp_path / "usr/lib/python3/dist-packages")}
    helper = tmp_path / "usr/sbin/mount.fuse.uringfs"
    run(sys.executable, helper, "-f", "-o", "ro", "/source", "/mnt", cwd=tmp_path, env=env)
    script = tmp_path / "usr/bin/uringfs"
    assert script.read_text().startswith("#!/usr/bin/python3\n")
    assert uringfs.__version__ in run(sys.executable, script, "--version", cwd=tmp_path, env=env)


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [each for each in headings if each != "Unreleased"]
    assert released[0] == uringfs.__version__
