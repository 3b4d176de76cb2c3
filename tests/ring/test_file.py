"""uringfs.ring.open() beside the built-in open()."""

import asyncio
import builtins
import io
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ring.drives import Drive
from uringfs.ring import BinaryFile, Ring, TextFile, open, run

CONTENT = "".join(f"line {i} \u00e9\u4e2d\U0001f600\n" for i in range(5000))


def test_binary(drive: Drive, tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def main(ring: Ring) -> None:
        async with open(path, "wb") as f:
            assert await f.write(b"one\ntwo\nthree") == 13
            await f.writelines([b"\n", memoryview(b"four"), bytearray(b"\n")])
            assert await f.tell() == 19
            assert path.read_bytes() == b"one\ntwo\nthree\nfour\n"
            assert f.writable()
            assert not f.readable()
            with pytest.raises(io.UnsupportedOperation):
                await f.read()
        assert f.closed
        with pytest.raises(ValueError, match="closed file"):
            await f.write(b"x")
        f = await open(path, "rb")
        assert isinstance(f, BinaryFile)
        assert f.name == path
        assert f.mode == "rb"
        assert await f.readline() == b"one\n"
        assert await f.readline(2) == b"tw"
        assert await f.tell() == 6
        assert [line async for line in f] == [b"o\n", b"three\n", b"four\n"]
        assert await f.seek(-5, os.SEEK_END) == 14
        assert await f.read(2) == b"fo"
        assert await f.seek(2, os.SEEK_CUR) == 18
        assert await f.seek(4) == 4
        assert await f.readlines(5) == [b"two\n", b"three\n"]
        into = bytearray(100)
        assert await f.readinto(into) == 5
        assert into[:5] == b"four\n"
        assert await f.pread(3, 4) == b"two"
        assert await f.tell() == 19
        with pytest.raises(io.UnsupportedOperation):
            await f.pwrite(b"x", 0)
        await f.close()
        await f.close()
        async with open(path, "r+b") as f:
            assert await f.read(3) == b"one"
            assert await f.truncate() == 3
            assert await f.pwrite(b"ZZ", 1) == 2
            assert await f.read() == b""
            await f.flush()
            await f.fsync()
            assert os.fstat(f.fileno()).st_size == 3
        assert path.read_bytes() == b"oZZ"

    drive(main)


def test_text(drive: Drive, tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def main(ring: Ring) -> None:
        async with open(path, "w", encoding="utf-8") as f:
            assert isinstance(f, TextFile)
            assert await f.write(CONTENT) == len(CONTENT)
            with pytest.raises(TypeError):
                await f.write(b"bytes")  # type: ignore[arg-type]
        assert path.read_text("utf-8") == CONTENT
        async with open(path, encoding="utf-8") as f:
            assert [line async for line in f] == CONTENT.splitlines(keepends=True)
            assert await f.seek(0) == 0
            assert await f.read() == CONTENT
            await f.seek(0)
            for _ in range(4000):
                await f.readline()
            cookie = await f.tell()
            rest = await f.read()
            await f.seek(cookie)
            assert await f.read() == rest
            with pytest.raises(io.UnsupportedOperation):
                await f.seek(1, os.SEEK_CUR)
        async with open(path, "a", encoding="utf-8") as f:
            await f.writelines(["more\n", "and more\n"])
        assert path.read_text("utf-8") == CONTENT + "more\nand more\n"

    drive(main)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_one_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    async def main() -> None:
        async with open(tmp_path / "f", "w", encoding=encoding) as f:
            await f.write("one\n")
            await f.write("two\n")
        async with open(tmp_path / "f", "a", encoding=encoding) as f:
            await f.write("three\n")
        assert (tmp_path / "f").read_bytes() == "one\ntwo\nthree\n".encode(encoding)
        async with open(tmp_path / "f", "r+", encoding=encoding) as f:
            assert await f.readline() == "one\n"
            cookie = await f.tell()
            assert await f.readline() == "two\n"
            await f.seek(cookie)
            await f.write("TWO\n")
            await f.seek(0)
            assert await f.read() == "one\nTWO\nthree\n"

    run(main())


def test_open_refuses_what_open_refuses(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"\xff")
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (("missing",), {}),
        (("there", "x"), {}),
        ((".",), {}),
        ((".", "rb"), {}),
        (("there", "rw"), {}),
        (("there", "b"), {}),
        (("there", "rbt"), {}),
        (("there", "rr"), {}),
        (("there", "q"), {}),
        (("there", "r", 0), {}),
        (("there", "rb"), {"encoding": "utf-8"}),
        (("there", "r"), {"newline": "x"}),
        (("there", "r"), {"encoding": "no-such"}),
        (("a\0b",), {}),
        ((99999,), {}),
    ]

    async def main() -> None:
        for args, options in calls:
            with pytest.raises(Exception) as theirs:  # noqa: PT011
                builtins.open(*args, **options)  # noqa: SIM115
            with pytest.raises(theirs.type):
                await open(*args, **options)
        async with open("there", encoding="utf-8") as f:
            with pytest.raises(UnicodeDecodeError):
                await f.read()

    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        run(main())
    finally:
        os.chdir(before)


def test_descriptor_and_closefd() -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        os.write(writer, b"a\nb")
        os.close(writer)
        async with open(reader, "rb", closefd=False) as f:
            assert not f.seekable()
            with pytest.raises(io.UnsupportedOperation):
                await f.tell()
            assert [line async for line in f] == [b"a\n", b"b"]
        os.close(reader)
        reader, writer = os.pipe()
        async with open(writer, "w") as out, open(reader) as text:
            await out.write("through a pipe\n")
            assert await text.readline() == "through a pipe\n"
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(reader)

    run(main())


def test_unclosed_file_warns(tmp_path: Path) -> None:
    async def main() -> int:
        f = await open(tmp_path / "f", "w")
        return f.fileno()

    with pytest.warns(ResourceWarning, match="unclosed file"):
        fd = run(main())
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_cancelled_read_leaves_the_file_usable() -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        async with open(reader, "rb") as f:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(f.readline(), 0.005)
            threading.Timer(0.01, os.write, [writer, b"line\n"]).start()
            assert await f.readline() == b"line\n"
        os.close(writer)

    run(main())


def test_parallel_writes_of_one_file_do_not_overlap(tmp_path: Path) -> None:
    async def main() -> None:
        async with open(tmp_path / "f", "wb") as f:
            await asyncio.gather(*(f.write(b"%03d" % i) for i in range(300)))

    run(main())
    data = (tmp_path / "f").read_bytes()
    assert sorted(data[i : i + 3] for i in range(0, 900, 3)) == [b"%03d" % i for i in range(300)]


# The same random operations on both


def same(
    tmp: Path,
    mode: str,
    start: bytes,
    script: list[tuple[str, Any]],
    steps: Callable[[Any, str, Any], Awaitable[Any]],
    **options: Any,
) -> None:
    """Run the script on a file of each kind: same results, same errors, same file."""
    theirs, ours = tmp / "theirs", tmp / "ours"
    for path in (theirs, ours):
        path.write_bytes(start)

    async def play(f: Any) -> list[Any]:
        results = []
        for name, argument in script:
            try:
                results.append(await steps(f, name, argument))
            except (OSError, ValueError) as error:
                results.append(OSError if isinstance(error, OSError) else type(error))
        return results

    async def main() -> None:
        with builtins.open(theirs, mode, **options) as f:
            expected = await play(f)
        async with open(ours, mode, **options) as g:
            got = await play(g)
        assert got == expected
        assert ours.read_bytes() == theirs.read_bytes()

    run(main())


async def maybe(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) else value


async def binary_step(f: Any, name: str, argument: Any) -> Any:
    if name == "readline" and not f.readable():
        return None  # of nothing, a built-in file lets one read 0 bytes
    result = await maybe(getattr(f, name)(*argument))
    if name in ("write", "truncate", "writelines"):
        await maybe(f.flush())
    return result, await maybe(f.tell())


small = st.integers(-1, 30)
chunks = st.one_of(st.binary(max_size=20), st.sampled_from([b"\n", b"a\nb", b"\n\n", b"\r\n"]))
binary_ops = st.one_of(
    st.tuples(st.sampled_from(["read", "readline", "readlines"]), st.tuples(small)),
    st.tuples(st.just("write"), st.tuples(chunks)),
    st.tuples(st.just("writelines"), st.tuples(st.lists(chunks, min_size=1, max_size=3))),
    st.tuples(st.just("seek"), st.tuples(st.integers(-5, 60), st.sampled_from([0, 1, 2]))),
    st.tuples(st.just("truncate"), st.tuples(st.one_of(st.none(), st.integers(0, 60)))),
)
fuzz = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@fuzz
@given(
    mode=st.sampled_from(["rb", "rb+", "wb+", "ab+", "ab", "wb"]),
    buffering=st.sampled_from([-1, 2, 7]),
    start=st.binary(max_size=50),
    script=st.lists(binary_ops, max_size=15),
)
def test_binary_agrees_with_builtin(
    tmp_path: Path, mode: str, buffering: int, start: bytes, script: list[tuple[str, Any]]
) -> None:
    same(tmp_path, mode, start, script, binary_step, buffering=buffering)


async def text_step(f: Any, name: str, argument: Any) -> Any:
    """Cookies are opaque: each file gets its own back. Writes are made at the start or the end:
    elsewhere the built-in open() writes behind its read-ahead, or behind a pending newline."""
    if name == "again":
        cookie = await maybe(f.tell())
        first = await maybe(f.read(argument))
        await maybe(f.seek(cookie))
        return first
    if name == "readlines" and not f.readable():
        return None  # a built-in file would refuse, and lose its tell() all the same
    if name == "end":
        await maybe(f.seek(0, 2))
        return None
    if name == "start":
        return await maybe(f.seek(0))
    if name in ("append", "overwrite"):
        await maybe(f.seek(0, os.SEEK_END if name == "append" else os.SEEK_SET))
        result = await maybe(f.write(argument))
        await maybe(f.flush())
        return result
    return await maybe(getattr(f, name)(argument))


texts = st.text(st.sampled_from("ab\n\r\u00e9\u4e2d\U0001f600"), max_size=12)
text_ops = st.one_of(
    st.tuples(st.sampled_from(["read", "readline", "again"]), small),
    st.tuples(st.just("readlines"), st.none()),  # with a hint, built-in files lose their tell()
    st.tuples(st.sampled_from(["append", "overwrite"]), texts),
    st.tuples(st.sampled_from(["start", "end"]), st.none()),
)


@fuzz
@given(
    mode=st.sampled_from(["r", "r+", "w+", "a+", "a"]),
    newline=st.sampled_from([None, "", "\n", "\r", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-16-le", "utf-32-le", "shift_jis"]),
    start=texts,
    script=st.lists(text_ops, max_size=12),
)
def test_text_agrees_with_builtin(
    tmp_path: Path,
    mode: str,
    newline: str | None,
    encoding: str,
    start: str,
    script: list[tuple[str, Any]],
) -> None:
    data = start.encode(encoding, "replace")
    same(
        tmp_path, mode, data, script, text_step,
        encoding=encoding, errors="replace", newline=newline,
    )  # fmt: skip
