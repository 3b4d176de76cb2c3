import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from perf.cases import ALL, BACKINGS, DEFAULT, ENGINES, GOALS, JOBS, SETS, goals_of, select
from perf.fio import FioError, block_sizes, job_for, job_options, parse_result, parse_size
from perf.model import Outcome
from perf.vhost.bench import cases as guests

FILES = sorted(JOBS.glob("*.fio"))


def side(operations: int, size: int = 4096, runtime: int = 2000) -> dict[str, Any]:
    percentiles = {"50.000000": 1500, "99.000000": 9000, "99.900000": 20000}
    return {
        "total_ios": operations, "io_bytes": operations * size, "runtime": runtime,
        "lat_ns": {"percentile": percentiles} if operations else {},
    }  # fmt: skip


def result(read: int = 0, write: int = 0, error: int = 0, **options: str) -> str:
    job = {"error": error, "read": side(read), "write": side(write)}
    return json.dumps({"global options": options, "jobs": [job]})


def test_a_result_is_read_past_fios_warnings() -> None:
    outcome = parse_result("fio: a warning\n" + result(read=1000), 4096, 4096)
    assert outcome == Outcome(1000, 4096000, 2.0, 1.5, 9.0, 20.0)


def test_reads_and_writes_of_a_mix_share_the_time_a_verification_follows() -> None:
    assert parse_result(result(read=100, write=100), 4096, 4096).seconds == 2.0
    assert parse_result(result(read=100, write=100, verify="crc32c"), 4096, 4096).seconds == 4.0


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "{not JSON", "{}", result(), result(read=1, error=5)],
)
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(FioError):
        parse_result(text, 4096, 4096)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(4096, (8192, 8192)), (4095, (4096, 8192)), (8193, (4096, 8192)), (6000, (4096, 8192))],
)
def test_bytes_that_do_not_fit_the_operations_are_refused(
    size: int, sizes: tuple[int, int]
) -> None:
    job = {"error": 0, "read": side(11, size), "write": side(0)}
    with pytest.raises(FioError, match="moved"):
        parse_result(json.dumps({"global options": {}, "jobs": [job]}), *sizes)


def test_a_mix_of_sizes_lies_between_them_and_is_reported_as_one() -> None:
    options = {"bssplit": "4k/60:8k/10:64k/30", "unified_rw_reporting": "1"}
    sizes = block_sizes(options)
    assert sizes == (4096, 65536)
    job = {"error": 0, "mixed": side(100, 20480)}
    outcome = parse_result(json.dumps({"global options": options, "jobs": [job]}), *sizes)
    assert (outcome.operations, outcome.bytes, outcome.p99) == (100, 2_048_000, 9.0)
    assert block_sizes({"bs": "1m"}) == (1 << 20, 1 << 20)


def test_where_each_write_is_made_safe_the_sync_is_what_is_waited_for() -> None:
    job = {"error": 0, "read": side(0), "write": side(10)}
    syncs = {"lat_ns": {"N": 10, "percentile": {"50.000000": 77_000}}}
    outcome = parse_result(
        json.dumps({"global options": {}, "jobs": [{**job, "sync": syncs}]}), 4096, 4096
    )
    assert (outcome.operations, outcome.p50, outcome.p99) == (10, 77.0, None)


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("4k", 4096), ("64M", 1 << 26), ("1g", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "k", "-1", "4kb", "1.5g"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_job_file_is_one_that_fio_takes(engine: str, tmp_path: Path) -> None:
    by_hand = ["fio", "--parse-only", f"--section={engine}", *map(str, FILES)]
    assert subprocess.run(by_hand, capture_output=True, timeout=30, check=True).stderr == b""
    jobs = [tmp_path / path.name for path in FILES]
    for path, job in zip(FILES, jobs, strict=True):
        changes = {"size": "4m", "directory": str(tmp_path)}
        job.write_text(job_for(path.read_text(), engine, changes))
        assert [line for line in job.read_text().splitlines() if line.startswith("[")] == [
            "[global]", f"[{engine}]",
        ]  # fmt: skip
    made = ["fio", "--parse-only", *map(str, jobs)]
    subprocess.run(made, capture_output=True, timeout=30, check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_name_of_a_job_file_says_what_is_in_it(path: Path) -> None:
    options = job_options(path.read_text())
    work, size, depth, *rest = path.stem.split("-")
    kinds = {
        "seqread": {"read"}, "seqwrite": {"write"}, "log": {"write"}, "vm": {"randrw"},
        "verify": {"write", "randwrite"},
    }  # fmt: skip
    assert options["rw"] in kinds.get(work, {work})
    assert (options.get("bs", "mixed"), f"qd{options['iodepth']}") == (size, depth)
    named = [word for word in (f"jobs{options['numjobs']}",) if word != "jobs1"]
    assert rest == named + ["buffered"] * (options["direct"] == "0")
    assert ("verify" in options) == (work == "verify")
    assert ("fdatasync" in options) == (work == "log")
    # Else the latencies would be those of one side only.
    assert ("unified_rw_reporting" in options) == (options["rw"] == "randrw")
    # fio would leave a file where it was started.
    assert options.get("verify_state_save", "0") == "0"
    assert "verify" not in options or "verify_state_save" in options


def test_changes_replace_what_the_file_says() -> None:
    text = job_for(FILES[0].read_text(), "libaio", {"size": "8m"})
    assert job_options(text)["size"] == "8m"


def test_every_case_has_its_file_and_every_goal_its_case() -> None:
    stems = {path.stem for path in FILES}
    assert {case.job for case in ALL if case.kind == "fio"} == stems
    # The figures of images and guests are measured only when asked for.
    answered = {goal for case in (*ALL, *guests([])) for goal in goals_of(case)}
    assert answered == set(GOALS)
    assert len({case.key for case in ALL}) == len(ALL)
    assert {case for chosen in SETS.values() for case in chosen} == set(ALL)


def test_the_default_is_what_the_goals_ask_for_and_no_longer() -> None:
    assert all(goals_of(case) for case in DEFAULT)
    assert len(DEFAULT) == 36


def test_every_depth_and_every_number_of_jobs_is_there() -> None:
    wanted = {
        f"{work}-4k-qd{depth}{jobs}"
        for work in ("randread", "randwrite", "randrw")
        for depth in (1, 8, 32, 128)
        for jobs in ("", "-jobs4")
    }
    assert wanted <= {case.job for case in SETS["full"]}
    assert {case.job for case in SETS["depth"]} == {job for job in wanted if "jobs" not in job}


def test_cases_are_chosen_by_key_name_or_job() -> None:
    assert [case.key for case in select(["randread-4k-qd1/libaio@disk"], BACKINGS)] == [
        "randread-4k-qd1/libaio@disk"
    ]
    assert len(select(["randread-4k-qd1/libaio"], BACKINGS)) == 2
    assert len(select(["randread-4k-qd1"], ["tmpfs"])) == 2
    assert select([], BACKINGS) == list(DEFAULT)
    with pytest.raises(ValueError, match="no case fits"):
        select(["randread-4k-qd128@disk"], ["tmpfs"])


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_chosen_by_its_name(name: str) -> None:
    chosen = select([], ["disk"], name)
    assert chosen == [case for case in SETS[name] if case.backing == "disk"] != []
