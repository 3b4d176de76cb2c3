"""asyncio is unchanged on every way to drive a ring; and what only RingSelector can get wrong."""

import asyncio
import concurrent.futures
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from tests.ring.drives import Drive
from uringfs.ring import Ring, RingEventLoop, RingSelector, get_ring, new_event_loop, run


def test_sockets(drive: Drive) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        message = os.urandom(500_000)
        writer.write(message)
        writer.write_eof()
        assert await reader.read() == message
        writer.close()
        await writer.wait_closed()

    async def main(ring: Ring) -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(client(port) for _ in range(10)), ring.timeout(0.01))
        server.close()

    drive(main)


def test_datagrams(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        loop = asyncio.get_running_loop()
        got = loop.create_future()

        class Receiver(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                got.set_result(data)

        server, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
        client, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.get_extra_info("sockname")
        )
        client.sendto(b"datagram")
        assert await got == b"datagram"
        server.close()
        client.close()

    drive(main)


def test_low_level_sockets(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        with ours, theirs:
            for i in range(50):
                receive = asyncio.create_task(loop.sock_recv(theirs, 10))
                await asyncio.sleep(0)
                await loop.sock_sendall(ours, b"%d" % i)
                assert await receive == b"%d" % i

    drive(main)


def test_subprocess(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read()[::-1]); exit(3)",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate(b"abc")
        assert (out, process.returncode) == (b"cba", 3)
        process = await asyncio.create_subprocess_exec("sleep", "100")
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    drive(main)


def test_signals(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, came.set)
        threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        await asyncio.wait_for(came.wait(), 10)
        assert loop.remove_signal_handler(signal.SIGUSR1)

    drive(main)


def test_threads(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        thread = threading.Timer(
            0.02, lambda: loop.call_soon_threadsafe(done.set_result, threading.get_ident())
        )
        thread.start()
        assert await asyncio.wait_for(done, 10) != threading.get_ident()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            results = await asyncio.gather(
                *(loop.run_in_executor(pool, pow, i, 2) for i in range(100))
            )
        assert results == [i * i for i in range(100)]

    drive(main)


def test_timeouts(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(100)
        loop = asyncio.get_running_loop()
        order: list[int] = []
        for i in (3, 1, 2):
            loop.call_later(i / 100, order.append, i)
        start = loop.time()
        await asyncio.sleep(0.05)
        assert loop.time() - start >= 0.05 - 0.001
        assert order == [1, 2, 3]

    drive(main)


def test_a_reader_is_called_as_long_as_there_is_something_to_read(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        got: list[bytes] = []
        done = asyncio.Event()

        def on_readable() -> None:
            got.append(os.read(reader, 1))
            if len(got) == 5:
                done.set()

        loop.add_reader(reader, on_readable)
        os.write(writer, b"abcde")
        await asyncio.wait_for(done.wait(), 10)
        loop.remove_reader(reader)
        assert got == [b"a", b"b", b"c", b"d", b"e"]
        os.close(reader)
        os.close(writer)

    drive(main)


def test_a_socket_closed_after_remove_reader_is_closed(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.settimeout(10)
            loop.add_reader(ours, lambda: None)
            await asyncio.sleep(0.001)
            loop.remove_reader(ours)
            ours.close()
            # The end of file comes only when the kernel holds no reference to `ours` any more.
            assert theirs.recv(1) == b""
            theirs.close()

    drive(main)


def test_get_ring(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        assert get_ring() is ring
        with pytest.raises(RuntimeError, match="driven by an event loop already"):
            ring.attach()

    drive(main)


def test_get_ring_attaches_one() -> None:
    async def main() -> tuple[Ring, bytes]:
        ring = get_ring()
        assert get_ring() is ring
        return ring, await ring.read(null, 10)

    null = os.open("/dev/null", os.O_RDONLY)
    assert asyncio.run(main())[1] == b""
    os.close(null)


def test_run_and_new_event_loop() -> None:
    async def main() -> str:
        assert isinstance(asyncio.get_running_loop(), RingEventLoop)
        await get_ring().nop()
        return "done"

    assert run(main()) == "done"
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(main()) == "done"


def test_selector_given_to_asyncios_own_loop() -> None:
    ring = Ring()

    async def main() -> None:
        await ring.nop()
        assert get_ring() is ring

    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(RingSelector(ring))
    ) as runner:
        runner.run(main())
    ring.close()


def test_keyboard_interrupt() -> None:
    async def main() -> None:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
        await asyncio.sleep(100)

    with pytest.raises(KeyboardInterrupt):
        run(main())


@pytest.fixture
def selector() -> Iterator[RingSelector]:
    ring = Ring()
    selector = RingSelector(ring)
    yield selector
    selector.close()
    ring.close()


def test_hang_up_wakes_reader_and_writer(selector: RingSelector) -> None:
    def events(kind: type[selectors.BaseSelector] | None, registered: int) -> list[int]:
        reader, writer = os.pipe()
        which = kind() if kind else selector
        try:
            which.register(writer, registered)
            which.select(0)
            os.close(reader)
            found = which.select(1)
            which.unregister(writer)
            return [mask for _, mask in found]
        finally:
            os.close(writer)
            if kind:
                which.close()

    for registered in (EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE):
        assert events(None, registered) == events(selectors.EpollSelector, registered)


def test_modify_replaces_the_poll(selector: RingSelector) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        selector.register(ours, EVENT_READ, "data")
        assert selector.select(0) == []
        key = selector.modify(ours, EVENT_WRITE, "other")
        assert selector.select(1) == [(key, EVENT_WRITE)]
        key = selector.modify(ours, EVENT_READ, "third")
        for _ in range(3):
            assert selector.select(0.001) == []
        theirs.send(b"x")
        assert selector.select(1) == [(key, EVENT_READ)]
        assert selector.select(0) == [(key, EVENT_READ)]
        selector.unregister(ours)
        assert selector.select(0) == []


def test_stale_completion_of_a_reused_descriptor(selector: RingSelector) -> None:
    for _ in range(20):
        ours, theirs = socket.socketpair()
        selector.register(ours, EVENT_READ)
        assert selector.select(0) == []
        theirs.send(b"x")  # completes in the kernel, and nobody selects
        selector.unregister(ours)
        number = ours.fileno()
        ours.close()
        theirs.close()
        reader, writer = os.pipe()
        assert number in (reader, writer)
        selector.register(reader, EVENT_READ)
        assert selector.select(0) == []
        selector.unregister(reader)
        os.close(reader)
        os.close(writer)


def test_same_refusals_as_epoll(selector: RingSelector) -> None:
    with selectors.EpollSelector() as epoll, open("/etc/passwd") as regular:
        reader, writer = os.pipe()
        os.close(writer)
        for which in (epoll, selector):
            which.register(reader, EVENT_READ)
        refused: list[tuple[Any, int]] = [
            (regular, EVENT_READ), (98765, EVENT_READ), (reader, EVENT_READ),
            (writer, 0), (writer, 8), (-1, EVENT_READ),
        ]  # fmt: skip
        for args in refused:
            said = []
            for which in (epoll, selector):
                with pytest.raises((OSError, KeyError, ValueError)) as raised:
                    which.register(*args)
                said.append((type(raised.value), str(raised.value)))
            if said[0][0] is not KeyError:  # which shows the key, and that has the fd's object
                assert said[0] == said[1]
        for method in ("unregister", "get_key"):
            said = []
            for which in (epoll, selector):
                with pytest.raises(KeyError) as raised:
                    getattr(which, method)(98765)
                said.append((type(raised.value), str(raised.value)))
            assert said[0] == said[1]
        os.close(reader)


def test_select_waits_as_long_as_asked_and_returns_on_a_signal(selector: RingSelector) -> None:
    start = time.monotonic()
    assert selector.select(0.02) == []
    assert time.monotonic() - start >= 0.02
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        for with_submission in (False, True):
            reader, writer = os.pipe()
            if with_submission:
                selector.register(reader, EVENT_READ)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            assert selector.select(None) == []
            if with_submission:
                selector.unregister(reader)
            os.close(reader)
            os.close(writer)
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_many_descriptors_on_a_small_ring() -> None:
    with Ring(8) as ring:
        selector = RingSelector(ring)
        pairs = [socket.socketpair() for _ in range(400)]
        try:
            for ours, theirs in pairs:
                selector.register(ours, EVENT_READ)
                theirs.send(b"x")
            for _ in range(3):
                assert len(selector.select(1)) == 400
            for ours, _ in pairs:
                ours.recv(1)
            assert selector.select(0) == []
        finally:
            selector.close()
            for ours, theirs in pairs:
                ours.close()
                theirs.close()


def test_a_driven_ring_is_closed_by_its_loop_only() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="close its event loop"):
            get_ring().close()

    run(main())
