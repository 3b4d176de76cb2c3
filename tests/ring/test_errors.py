"""No io_uring: one exception that names the cause and the remedy, seen for real."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from uringfs.ring import Ring, RingUnavailable, probe
from uringfs.ring.errors import explain

SECCOMP = """
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    IO_URING_SETUP = 425
    LD, JEQ, RET = 0x20, 0x15, 0x06
    program = b"".join(struct.pack("HBBI", *i) for i in [
        (LD, 0, 0, 0), (JEQ, 0, 1, IO_URING_SETUP), (RET, 0, 0, 0x50000 | {errno}),
        (RET, 0, 0, 0x7fff0000)])
    code = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", 4, ctypes.addressof(code))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.c_char_p(fprog), 0, 0) == 0
"""

PROBE = """
    from uringfs.ring import RingUnavailable, probe
    try:
        probe()
    except RingUnavailable as error:
        print(error.errno, error.strerror)
    else:
        print("no error")
"""


def run(*scripts: str) -> str:
    script = "\n".join(textwrap.dedent(s) for s in scripts)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert not done.stderr
    return done.stdout.strip()


def test_probe() -> None:
    probe()


@pytest.mark.parametrize("code", [1, 38])
def test_seccomp(code: int) -> None:
    said = run(SECCOMP.replace("{errno}", str(code)), PROBE)
    assert said.startswith(f"{code} ")
    assert "seccomp" in said
    assert "allow io_uring_setup" in said
    assert "\n" not in said


def test_memlock() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give up CAP_IPC_LOCK")
    said = run(
        """
        import os, resource
        from uringfs.ring import Ring, RingUnavailable
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        os.setresuid(65534, 65534, 65534)
        ring = Ring()
        for _ in range(2):
            try:
                ring.buffers(64, 1 << 20)
            except RingUnavailable as error:
                print(error.errno, error.strerror)
        """
    )
    lines = said.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("12 ")
        assert "RLIMIT_MEMLOCK is 65536 bytes" in line
        assert "ulimit -l" in line


def test_no_descriptor_left() -> None:
    said = run(
        """
        import os, resource
        from uringfs.ring import RingUnavailable, probe
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        """,
        PROBE.replace("from uringfs.ring import RingUnavailable, probe", ""),
    )
    assert said.startswith("24 ")
    assert "RLIMIT_NOFILE" in said


SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")


@pytest.mark.skipif(
    os.environ.get("URINGFS_TEST_SYSCTL") != "1",
    reason="changes kernel.io_uring_disabled for the whole machine: URINGFS_TEST_SYSCTL=1",
)
@pytest.mark.parametrize("value", ["1", "2"])
def test_sysctl(value: str) -> None:
    before = SYSCTL.read_text()
    drop = "import os; os.setresuid(65534, 65534, 65534)" if value == "1" else ""
    imports = "import uringfs.ring, subprocess"
    try:
        SYSCTL.write_text(value)
        said = run(imports, drop, PROBE)
    finally:
        SYSCTL.write_text(before)
    assert f"kernel.io_uring_disabled={value}" in said
    assert "sysctl kernel.io_uring_disabled=0" in said


def test_unavailable_is_an_oserror() -> None:
    assert issubclass(RingUnavailable, OSError)
    for code in (1, 12, 13, 22, 23, 24, 38, 5):
        assert "\n" not in explain(code)
        assert "io_uring" in explain(code)


def test_describe_names_what_the_kernel_gave() -> None:
    with Ring(10) as ring:
        assert ring.describe().startswith("16/32 entries")
        assert ring.supports("READ")
        with pytest.raises(KeyError):
            ring.supports("NONSENSE")
