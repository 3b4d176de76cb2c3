"""The native session on real mounts: how it starts, serves, is switched and ends."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fuse.conftest import Serve
from tests.fuse.served import TIMEOUT_S, Served
from uringfs.config import MountConfig
from uringfs.fuse.mount import DEVICE, handed_device, mount
from uringfs.fuse.mounts import mount_at, unmount

NOBODY = 65534


@pytest.mark.parametrize("do_import", [True, False])
def test_the_root_is_entered_by_init_or_beforehand(serve: Serve, do_import: bool) -> None:
    """The test's server enters it by itself where do_import says that INIT does not."""
    mounted = serve(do_import=do_import)
    (mounted.path / "file").write_bytes(b"x")
    assert (mounted.source / "file").read_bytes() == b"x"


class TestServing:
    def test_a_shell_works_in_it(self, served: Served) -> None:
        script = """
            set -e
            ls -la . > /dev/null
            echo hello > a; cat a; mv a b; ln b c; ln -s c d; cat d
            mkdir e; touch e/f; rm -r e
            dd if=/dev/urandom of=big bs=1M count=8 status=none; cp big copy; cmp big copy
        """
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=served.path,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        assert done.stdout == b"hello\nhello\n"
        assert sorted(os.listdir(served.source)) == ["b", "big", "c", "copy", "d"]

    def test_every_name_of_a_large_directory(self, served: Served) -> None:
        directory = served.source / "large"
        directory.mkdir()
        names = {f"{i:05}" + "x" * (i % 200) for i in range(5000)}
        for name in names:
            (directory / name).touch()
        with os.scandir(served.path / "large") as entries:
            found = {entry.name: entry.inode() for entry in entries}
        assert found.keys() == names
        some = sorted(names)[::500]
        assert [os.stat(served.path / "large" / name).st_ino for name in some] == [
            found[name] for name in some
        ]

    def test_data_arrives_whole(self, served: Served) -> None:
        data = os.urandom((3 << 20) + 123)
        with (served.path / "data").open("wb", buffering=0) as file:
            for at in range(0, len(data), 300_001):
                assert file.write(data[at : at + 300_001]) == len(data[at : at + 300_001])
        assert (served.source / "data").read_bytes() == data
        assert hashlib.sha256((served.path / "data").read_bytes()).digest() == (
            hashlib.sha256(data).digest()
        )

    def test_flags_changed_on_an_open_file_are_honoured(self, served: Served) -> None:
        (served.source / "flags").write_bytes(b"1234")
        fd = os.open(served.path / "flags", os.O_RDWR)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
            (served.source / "flags").write_bytes(b"12345678")
            os.stat(fd)
            os.write(fd, b"end")
            assert (served.source / "flags").read_bytes() == b"12345678end"
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            os.pwrite(fd, b"AB", 0)
            assert (served.source / "flags").read_bytes() == b"AB345678end"
        finally:
            os.close(fd)

    def test_requests_are_counted(self, serve: Serve) -> None:
        mounted = serve(attr_timeout=0, cache_policy="never")
        (mounted.source / "f").write_bytes(b"x" * 8192)
        with (mounted.path / "f").open("rb", buffering=0) as file:
            for _ in range(5):
                assert len(os.pread(file.fileno(), 4096, 0)) == 4096
        assert mounted.stop() == 0
        assert mounted.requests["read"] == 5
        assert mounted.requests["init"] == mounted.requests["open"] == 1

    def test_a_shared_mapping_works_without_caching(self, serve: Serve) -> None:
        mounted = serve(cache_policy="never")
        (mounted.source / "f").write_bytes(bytes(8192))
        with (mounted.path / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[5000:5003] = b"abc"
            memory.flush()
        assert (mounted.source / "f").read_bytes()[5000:5003] == b"abc"


class TestEnding:
    def test_a_signal_unmounts(self, serve: Serve) -> None:
        mounted = serve()
        assert mounted.stop() == 0
        assert mount_at(str(mounted.path)) is None

    def test_it_ends_when_it_is_unmounted(self, serve: Serve) -> None:
        mounted = serve()
        unmount(str(mounted.path))
        assert mounted.wait() == 0

    def test_it_ends_when_it_is_aborted(self, serve: Serve) -> None:
        mounted = serve()
        mounted.abort()
        assert mounted.wait() == 0
        assert "aborted" in mounted.log
        assert mount_at(str(mounted.path)) is None

    def test_it_ends_while_files_are_open(self, serve: Serve) -> None:
        mounted = serve(attr_timeout=0)
        (mounted.source / "f").write_bytes(b"x")
        fd = os.open(mounted.path / "f", os.O_RDONLY)
        assert mounted.stop() == 0
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.fstat(fd)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.close(fd)
        assert "detaching" in mounted.log

    def test_what_the_kernel_has_gathered_is_not_lost(self, serve: Serve) -> None:
        mounted = serve(writeback=True, cache_policy="always")
        fd = os.open(mounted.path / "f", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, b"gathered")
        assert (mounted.source / "f").read_bytes() == b""
        assert mounted.stop() == 0
        assert (mounted.source / "f").read_bytes() == b"gathered"
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.close(fd)

    def test_it_ends_under_load(self, serve: Serve) -> None:
        mounted = serve(attr_timeout=0, cache_policy="never")
        (mounted.source / "f").write_bytes(bytes(1 << 20))
        script = "while dd if=f of=/dev/null bs=4k iflag=direct status=none; do :; done"
        with subprocess.Popen(
            ["sh", "-c", script], cwd=mounted.path, stderr=subprocess.DEVNULL
        ) as load:
            time.sleep(0.3)
            assert mounted.stop() == 0
            assert mount_at(str(mounted.path)) is None
            load.wait(TIMEOUT_S)

    def test_another_mount_on_top_is_left_alone(self, serve: Serve) -> None:
        mounted = serve()
        subprocess.run(
            ["mount", "-t", "tmpfs", "over", mounted.path], check=True, timeout=TIMEOUT_S
        )
        assert mounted.stop() == 0
        on_top = mount_at(str(mounted.path))
        assert on_top is not None
        assert on_top.source == "over"


class TestSwitching:
    def test_the_back_end_changes_under_load(self, serve: Serve) -> None:
        mounted = serve(attr_timeout=0, cache_policy="never")
        blocks = [os.urandom(4096) for _ in range(64)]
        (mounted.source / "f").write_bytes(b"".join(blocks))
        wrong: list[str] = []
        ending = threading.Event()

        def load() -> None:
            fd = os.open(mounted.path / "f", os.O_RDWR | os.O_DIRECT)
            memory = mmap.mmap(-1, 4096)
            try:
                while not ending.is_set():
                    for number, block in enumerate(blocks):
                        if os.preadv(fd, [memory], number * 4096) != 4096 or memory[:] != block:
                            wrong.append(f"block {number}")
                        if os.pwrite(fd, memory, number * 4096) != 4096:
                            wrong.append(f"write {number}")
            except OSError as exc:
                wrong.append(str(exc))
            finally:
                os.close(fd)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            mounted.process.send_signal(signal.SIGUSR1)
            time.sleep(0.05)
        ending.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert wrong == []
        assert (mounted.source / "f").read_bytes() == b"".join(blocks)
        assert mounted.stop() == 0


class TestMounting:
    def test_options_reach_the_kernel(self, serve: Serve) -> None:
        mounted = serve(ro=True, nosuid=True, noexec=True, fsname="my,source")
        found = mount_at(str(mounted.path))
        assert found is not None
        assert (found.fstype, found.source) == ("fuse.uringfs", "my,source")
        assert os.statvfs(mounted.path).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NOEXEC) == (
            os.ST_RDONLY | os.ST_NOSUID | os.ST_NOEXEC
        )
        with pytest.raises(OSError, match="Read-only"):
            (mounted.path / "f").touch()

    @pytest.fixture
    def device_for_all(self) -> Generator[None]:
        """/dev/fuse as udev makes it, on a machine without udev."""
        mode = os.stat(DEVICE).st_mode
        os.chmod(DEVICE, 0o666)
        yield
        os.chmod(DEVICE, mode)

    @pytest.fixture
    def of_nobody(self) -> Generator[Path]:
        """A directory that nobody can reach, as nobody cannot pytest's."""
        base = Path(tempfile.mkdtemp(prefix="uringfs-user-"))
        base.chmod(0o755)
        for name in ("source", "mount"):
            (base / name).mkdir()
            os.chown(base / name, NOBODY, NOBODY)
        yield base
        shutil.rmtree(base)

    @pytest.mark.usefixtures("device_for_all")
    def test_a_user_mounts_through_fusermount3(self, of_nobody: Path) -> None:
        mounted = Served(of_nobody, {"setuid": NOBODY, "fsname": "a,b"})
        try:
            mounted.wait_live()
            found = mount_at(str(mounted.path))
            assert found is not None
            assert (found.fstype, found.source) == ("fuse.uringfs", "a,b")
            done = subprocess.run(
                ["sh", "-c", f"cd {mounted.path} && echo hi > f && cat f"], cwd="/",
                user=NOBODY, group=NOBODY, capture_output=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
            assert (done.stdout, done.stderr) == (b"hi\n", b"")
            assert (mounted.source / "f").stat().st_uid == NOBODY
            assert mounted.stop() == 0
            assert mount_at(str(mounted.path)) is None
        finally:
            mounted.clean_up()

    def test_a_device_handed_on_is_served(self, tmp_path: Path) -> None:
        (tmp_path / "mount").mkdir()
        device = mount(str(tmp_path / "mount"), MountConfig(allow_other=True))
        mounted = Served(tmp_path, {}, fds=(device,))
        os.close(device)
        try:
            mounted.wait_live()
            (mounted.source / "f").write_bytes(b"handed on")
            assert (mounted.path / "f").read_bytes() == b"handed on"
            unmount(str(mounted.path))
            assert mounted.wait() == 0
        finally:
            mounted.clean_up()

    def test_what_is_no_device_is_refused(self, tmp_path: Path) -> None:
        with (
            (tmp_path / "f").open("w") as file,
            pytest.raises(OSError, match="not an open /dev/fuse"),
        ):
            handed_device(f"/dev/fd/{file.fileno()}")
        with pytest.raises(OSError, match="Bad file descriptor"):
            handed_device("/dev/fd/9999")
        assert handed_device("/dev/fd/") is None
        assert handed_device("/mnt") is None

    @pytest.mark.parametrize(
        ("make", "code"), [(None, errno.ENOENT), ("file", errno.ENOTDIR)], ids=["missing", "file"]
    )
    def test_a_bad_mount_point_is_named(self, tmp_path: Path, make: str | None, code: int) -> None:
        where = tmp_path / "mount"
        if make:
            where.touch()
            where = where / "below"
        with pytest.raises(OSError, match=str(where)) as caught:
            mount(str(where), MountConfig())
        assert caught.value.errno == code
        assert mount_at(str(where)) is None
