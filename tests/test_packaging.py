"""What a stranger gets: the source distribution, installed where nothing of ours was before."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import uringfs

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", directory, ROOT, cwd=directory)
    [path] = directory.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of a fresh virtual environment into which pip built the source distribution."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=venv.parent)
    run(venv / "bin/pip", "install", "--quiet", sdist, cwd=venv.parent)
    return venv / "bin"


def test_the_sdist_has_what_its_reader_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "-c", "safe.directory=*", "ls-files", cwd=ROOT).splitlines())
    wanted = {
        name
        for name in tracked
        if name.startswith(("docs/", "tests/", "uringfs/")) or "/" not in name
    }
    assert wanted - names == {".gitignore"}
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_the_command_tells_its_version(installed: Path, tmp_path: Path) -> None:
    assert uringfs.__version__ in run(installed / "uringfs", "--version", cwd=tmp_path)


def test_the_ring_is_there_and_nothing_is_missing(installed: Path, tmp_path: Path) -> None:
    code = "import uringfs.ring, uringfs.ring._uring as built; print(built.__file__)"
    path = Path(run(installed / "python", "-I", "-c", code, cwd=tmp_path).strip())
    assert path.is_relative_to(installed.parent)
    run(installed / "pip", "check", cwd=tmp_path)


def test_only_what_runs_is_installed(installed: Path) -> None:
    [package] = installed.parent.glob("lib/python*/site-packages/uringfs")
    assert (package / "py.typed").exists()
    suffixes = {path.suffix for path in package.rglob("*") if path.is_file()}
    assert suffixes == {".py", ".pyc", ".so", ".typed"}
    assert not (package.parent / "tests").exists()
