"""A process that stays outside of the sandbox, for the little that has to be done there.

Who has locked himself in can neither mount nor unmount, nor see whose processes the callers are.
So the server forks before it locks itself in. What the other process can be asked for is fixed
then: a few calls by name, whose arguments say nothing about where.

Two sockets join them, since what waits (an unmount has the kernel write back, which the server has
to answer) must not hold up what is asked in the middle of a request.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

log = logging.getLogger(__name__)

MAX_MESSAGE = 1 << 16
MAX_FDS = 2

_unused: list[logging.Handler] = []
"""The server's. They are not let go of: the descriptors they would close are others' by then."""

Task = Callable[..., Any]
"""Takes descriptors, by position, and takes and gives what JSON can carry; what it logs is logged
by the server."""


class Sent(int):
    """A descriptor that a task gives: the server gets one of its own, and this one is closed."""


class Outside:
    """The server's end. Fork early: the child keeps what memory and mappings there are.

    ``slow`` and ``quick`` are the tasks by name; ``prepare`` is called in the child first.
    """

    def __init__(
        self,
        slow: Mapping[str, Task],
        quick: Mapping[str, Task],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        groups = (slow, quick)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in groups]
        self._pid = os.fork()
        if self._pid == 0:
            _live([theirs for _, theirs in pairs], groups, prepare)
        for _, theirs in pairs:
            theirs.close()
        self._channels = [_Channel(ours) for ours, _ in pairs]
        self._of = {
            name: channel
            for channel, group in zip(self._channels, groups, strict=True)
            for name in group
        }

    def call(self, name: str, *, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Have a task done, and return what it gives. Of ``fds`` it gets copies for the time.

        OSError as the task raised it; EPIPE if the process is gone.
        """
        return self._of[name].call(name, fds, arguments)

    def tell(self, name: str, *, fds: Sequence[int] = (), **arguments: Any) -> None:
        """Have a task done, and do not wait: what comes of it is not known."""
        self._of[name].tell(name, fds, arguments)

    def close(self) -> None:
        """Let the process end, and wait until it has."""
        for channel in self._channels:
            channel.close()
        os.waitpid(self._pid, 0)


class _Channel:
    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._lock = threading.Lock()

    def tell(self, name: str, sent: Sequence[int], arguments: Mapping[str, Any]) -> None:
        with self._lock, contextlib.suppress(ConnectionError):
            self._send(name, sent, arguments, answer=False)

    def _send(
        self, name: str, sent: Sequence[int], arguments: Mapping[str, Any], *, answer: bool
    ) -> None:
        socket.send_fds(self._socket, [json.dumps([name, arguments, answer]).encode()], sent)

    def call(self, name: str, sent: Sequence[int], arguments: Mapping[str, Any]) -> Any:
        with self._lock:
            try:
                self._send(name, sent, arguments, answer=True)
                message, fds, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE, 1)
            except ConnectionError:
                message = b""
        if not message:
            raise OSError(errno.EPIPE, "the process outside of the sandbox is gone")
        answer = json.loads(message)
        for source, level, text in answer["log"]:
            logging.getLogger(source).log(level, "%s", text)
        if "error" in answer:
            raise OSError(*answer["error"])
        for fd in fds:
            os.set_inheritable(fd, False)
            return fd
        return answer["value"]

    def close(self) -> None:
        self._socket.close()


# The other process


def _live(
    sockets: list[socket.socket], groups: tuple[Mapping[str, Task], ...], prepare: Task
) -> NoReturn:
    """Serve until the server is gone. Never comes back into what was being done at the fork."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)  # the server decides when it ends
        prepare()
        _unused.extend(logging.getLogger().handlers)
        logging.getLogger().handlers = [_Collector()]
        channels = _keep_only(sockets)
        waiting = threading.Thread(target=_serve, args=(channels[0], groups[0]))
        waiting.start()
        _serve(channels[1], groups[1])
        waiting.join()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _keep_only(sockets: list[socket.socket]) -> list[socket.socket]:
    """Close all that the server had open, and leave its directory and terminal: what is held open
    here would live on when the server dies."""
    high = [os.dup(each.detach()) for each in sockets]
    null = os.open(os.devnull, os.O_RDWR)
    for number, fd in enumerate([null, null, null, *high]):
        os.dup2(fd, number, inheritable=False)
    os.closerange(3 + len(high), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.chdir("/")
    return [socket.socket(fileno=3 + index) for index in range(len(high))]


class _Said(threading.local):
    """What this thread has logged and not told the server yet."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, str]] = []


_said = _Said()


class _Collector(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _said.lines.append((record.name, record.levelno, record.getMessage()))


def _serve(channel: socket.socket, tasks: Mapping[str, Task]) -> None:
    while True:
        message, got, _, _ = socket.recv_fds(channel, MAX_MESSAGE, MAX_FDS)
        if not message:
            return
        fds: list[int] = []
        name, arguments, wanted = json.loads(message)
        answer = _answer(partial(tasks[name], *got, **arguments), name, fds)
        for fd in got:
            with contextlib.suppress(OSError):  # of whoever wrote to that file
                os.close(fd)
        if not wanted:
            continue
        answer["log"], _said.lines = _said.lines, []
        try:
            socket.send_fds(channel, [json.dumps(answer).encode()], fds)
        except ConnectionError:
            return
        for fd in fds:
            os.close(fd)


def _answer(task: Callable[[], Any], name: str, fds: list[int]) -> dict[str, Any]:
    try:
        value = task()
    except OSError as exc:
        return {"error": [exc.errno or errno.EIO, exc.strerror or str(exc), exc.filename]}
    except Exception as exc:
        return {"error": [errno.EIO, f"{name}: {exc!r}"]}
    if isinstance(value, Sent):
        fds.append(value)
        value = None
    return {"value": value}
