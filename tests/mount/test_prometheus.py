"""A real Prometheus reads the metrics: the dashboard and the alarms get what they ask for.

Grafana itself is not among Debian's packages; what it would ask is asked in its place.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import TIMEOUT_S, Combination, served_by, wait_until
from uringfs.observe.prometheus import BY_OPERATION, DURATION, INFO, METRICS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/observing.md").read_text()
VARIABLES = {"$mountpoint": ".*", "$operation": ".*", "$__rate_interval": "30s"}
"""What Grafana puts in their place."""
CONFIG = """\
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
- job_name: uringfs
  static_configs: [{{targets: ["{target}"]}}]
"""

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="prometheus is not installed (apt install prometheus)",
)
combination = served_by([Combination("dev", ("--session=dev",))])


class Prometheus(NamedTuple):
    address: str

    def ask(self, path: str, **arguments: str) -> Any:
        """The ``data`` of an answer of its API's."""
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"http://{self.address}/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def result_of(self, expression: str) -> list[float]:
        """The values there are now, of whatever labels."""
        values = [
            float(each["value"][1]) for each in self.ask("api/v1/query", query=expression)["result"]
        ]
        return [value for value in values if not math.isnan(value)]

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.result_of("up == 1"))
        return False


def free_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@contextlib.contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """One that reads from there."""
    config, address = directory / "prometheus.yml", free_address()
    config.write_text(CONFIG.format(target=target))
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait(TIMEOUT_S)


def dashboard() -> list[str]:
    """The expressions of all panels."""
    panels = json.loads((ROOT / "packaging/grafana.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    for name, value in VARIABLES.items():
        expressions = [each.replace(name, value) for each in expressions]
    return expressions


def test_the_dashboard_and_the_alarms_get_what_they_ask_for(
    new_mount: NewMount, tmp_path: Path
) -> None:
    target = free_address()
    mounted = new_mount(f"--metrics-addr={target}", "--entry-timeout=0")
    numbers = iter(range(1_000_000))

    def work() -> None:
        file = mounted.path / f"file{next(numbers)}"
        assert not file.exists()
        file.write_bytes(bytes(10_000))
        assert len(file.read_bytes()) == 10_000

    def everything_is_there(expressions: list[str]) -> bool:
        work()
        return all(server.result_of(each) for each in expressions)

    with prometheus(tmp_path, target) as server:
        wait_until(server.is_ready, "Prometheus to read")
        expressions = dashboard()
        assert len(expressions) > 10
        wait_until(lambda: everything_is_there(expressions), "data for each panel")
        names = server.ask("api/v1/label/__name__/values")
        alarms = re.findall(r"^  expr: (.+)$", PAGE, re.MULTILINE)
        assert len(alarms) == 3
        # None is on; that they can be read is what is asked.
        assert [server.result_of(each) for each in alarms] == [[], [], []]
    found = {re.sub("_(bucket|sum|count)$", "", each) for each in names if "uringfs" in each}
    assert found == {f"uringfs_{each.name}" for each in (INFO, *METRICS, *BY_OPERATION, DURATION)}
    assert found == set(re.findall(r"^\| `(uringfs_\w+)`", PAGE, re.MULTILINE))
