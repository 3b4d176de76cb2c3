import os
import time
from pathlib import Path

import pytest

from perf import proc

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
36 22 0:52 / /mnt/a\\040b rw,nosuid - fuse.uringfs /src rw,user_id=0
37 36 0:53 / /mnt/a\\040b rw,nosuid - fuse /src rw,user_id=0
"""


def test_mountinfo_is_read_with_spaces_in_names() -> None:
    table = proc.parse_mountinfo(MOUNTINFO)
    assert [mount.mountpoint for mount in table] == ["/", "/mnt/a b", "/mnt/a b"]
    assert table[1] == proc.Mount("/mnt/a b", "52", "fuse.uringfs", "rw,user_id=0")


def test_cpu_ticks_come_after_a_name_that_may_hold_anything() -> None:
    stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 70 30 5 5 20 0 3 0 100 1 1"
    assert proc.parse_cpu_ticks(stat) == 100


def test_cpu_seconds_grow_with_work() -> None:
    before = proc.cpu_seconds(os.getpid())
    target = time.process_time() + 0.1
    while time.process_time() < target:
        pass
    assert proc.cpu_seconds(os.getpid()) >= before + 0.05


def test_peak_rss_counts_bytes() -> None:
    assert proc.parse_peak_rss("Name:\tx\nVmPeak:\t9 kB\nVmHWM:\t  34 kB\n") == 34 * 1024
    assert proc.peak_rss(os.getpid()) > 1 << 20


def test_resident_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 16))
    assert proc.resident(path) == 1 << 16


def test_the_machine_is_described() -> None:
    facts = proc.machine(Path("/var/tmp"))
    assert {"kernel", "cpu", "idle", "disk", "fio", "uringfs", "commit"} <= set(facts)
    assert facts["fio"].startswith("fio-")


@pytest.mark.parametrize(
    ("driver", "told"), [("haltpoll", "haltpoll, 200000 ns"), ("none", "none"), (None, "unknown")]
)
def test_what_an_idle_cpu_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str | None, told: str
) -> None:
    monkeypatch.setattr(proc, "IDLE_DRIVER", tmp_path / "driver")
    monkeypatch.setattr(proc, "HALT_POLL_NS", tmp_path / "ns")
    if driver:
        (tmp_path / "driver").write_text(f"{driver}\n")
        (tmp_path / "ns").write_text("200000\n")
    assert proc.idle() == told
