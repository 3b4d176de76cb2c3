"""A sanitizer's report, of a server that is built with one, does not go by unseen."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.mount.harness import assert_no_report

FAULTY = """
#include <stdlib.h>
int main(int count)
{
        char *freed = malloc(8);
        int most = 0x7fffffff;
        free(freed);
        return count > 1 ? *freed : most + count;
}
"""


@pytest.mark.parametrize(
    ("word", "kind"), [("", "signed integer"), ("freed", "heap-use-after-free")]
)
def test_what_a_sanitizer_says_is_seen(tmp_path: Path, word: str, kind: str) -> None:
    (tmp_path / "faulty.c").write_text(FAULTY)
    built = ["cc", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    subprocess.run([*built, "-o", "faulty", "faulty.c"], cwd=tmp_path, check=True, timeout=60)
    faulty = subprocess.run(
        [tmp_path / "faulty", *word.split()], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert faulty.returncode != 0
    assert_no_report("0x55: runtime error, as others say")
    with pytest.raises(AssertionError, match=kind):
        assert_no_report(f"what the server said\n{faulty.stderr}")
