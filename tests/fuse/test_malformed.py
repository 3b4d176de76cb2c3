"""INIT, extensions, and every way a message can be wrong."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from tests.fuse.kernel import ROOM, Connection, init_in, message, parse, read_in, write_in
from uringfs.fs.types import Caller, Features
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.opcodes import OPERATIONS, Operation


class TestInit:
    def test_the_agreement_reaches_the_operations(self, tmp_path: Path) -> None:
        with Connection(tmp_path, no_open=True) as connection:
            flags = abi.InitFlags.INIT_EXT | abi.InitFlags.NO_OPEN_SUPPORT
            error, body = connection.ask(Opcode.INIT, init_in(flags=flags))
            assert error == 0
            fields = abi.INIT_OUT.unpack(body)
            assert (fields[0], fields[3]) == (7, flags)
            assert connection.fs.features.no_open
            answer = connection.ask(Opcode.OPEN, abi.OPEN_IN.pack(0, 0))
            assert answer == (errno.ENOSYS, b"")

    def test_flags_beyond_bit_31_come_with_init_ext(self, connection: Connection) -> None:
        flags = abi.InitFlags.CREATE_SUPP_GROUP
        _, body = connection.ask(Opcode.INIT, init_in(flags=flags))
        assert abi.INIT_OUT.unpack(body)[10] == 0
        _, body = connection.ask(Opcode.INIT, init_in(flags=flags | abi.InitFlags.INIT_EXT))
        assert abi.INIT_OUT.unpack(body)[10] == flags >> 32

    def test_the_short_form_is_enough(self, connection: Connection) -> None:
        assert connection.ask(Opcode.INIT, init_in()[:16]).error == 0

    def test_an_old_kernel_is_told(self, connection: Connection) -> None:
        assert connection.ask(Opcode.INIT, init_in(minor=8)) == (errno.EPROTO, b"")
        assert connection.dispatcher.agreement is None

    def test_destroy_forgets_everything(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        connection.lookup(b"f")
        assert connection.ask(Opcode.DESTROY) == (0, b"")
        assert len(connection.fs.inodes) == 0


def groups_extension(*groups: int) -> bytes:
    body = struct.pack(f"=I{len(groups)}I", len(groups), *groups)
    body += b"\0" * (-len(body) % 8)
    return abi.EXT_HEADER.pack(8 + len(body), abi.FUSE_EXT_GROUPS) + body


def security_extension(*contexts: tuple[bytes, bytes]) -> bytes:
    body = b"".join(abi.SECCTX.pack(len(value)) + name + b"\0" + value for name, value in contexts)
    body += b"\0" * (-len(body) % 8)
    return abi.SECCTX_HEADER.pack(8 + len(body), len(contexts)) + body


class TestExtensions:
    MKDIR = abi.MKDIR_IN.pack(0o755, 0)

    def test_a_supplementary_group_lets_the_caller_in(
        self, connection: Connection, root: Path
    ) -> None:
        os.chown(root, 0, 4321)
        root.chmod(0o770)
        who = {"uid": 1000, "gid": 1000}
        assert connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0", **who).error == errno.EACCES
        answer = connection.ask(
            Opcode.MKDIR, self.MKDIR, b"d\0", extensions=groups_extension(4321), **who
        )
        assert answer.error == 0
        assert connection.ask(Opcode.MKDIR, self.MKDIR, b"e\0", **who).error == errno.EACCES

    @pytest.mark.parametrize(
        ("features", "sent", "known"),
        [
            (Features(create_supp_group=True), (7, 8), (7, 8)),
            (Features(create_supp_group=True), None, ()),
            (Features(), None, None),
            (Features(create_supp_group=True, posix_acl=True), (7,), None),
            (Features(create_supp_group=True, posix_acl=True), None, None),
        ],
    )
    def test_the_process_is_looked_at_where_the_kernel_does_not_say_enough(
        self,
        connection: Connection,
        monkeypatch: pytest.MonkeyPatch,
        features: Features,
        sent: tuple[int, ...] | None,
        known: tuple[int, ...] | None,
    ) -> None:
        seen: list[tuple[int, ...] | None] = []

        def make(caller: Caller, *_: object) -> None:
            seen.append(caller.groups)
            raise OSError(errno.ENOSPC, "")

        connection.fs.negotiated(features)
        making = {
            Opcode.MKDIR: self.MKDIR + b"n\0",
            Opcode.MKNOD: abi.MKNOD_IN.pack(0o100600, 0, 0) + b"n\0",
            Opcode.SYMLINK: b"n\0t\0",
            Opcode.CREATE: abi.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + b"n\0",
            Opcode.TMPFILE: abi.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + b"n\0",
        }
        extensions = b"" if sent is None else groups_extension(*sent)
        for opcode, body in making.items():
            monkeypatch.setattr(connection.fs, opcode.name.lower(), make)
            assert connection.ask(opcode, body, extensions=extensions).error == errno.ENOSPC
        assert seen == [known] * len(making)

    def test_a_security_context_becomes_an_attribute(
        self, connection: Connection, root: Path
    ) -> None:
        extensions = security_extension((b"user.label", b"secret")) + groups_extension(1, 2)
        answer = connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0", extensions=extensions)
        assert answer.error == 0
        assert os.getxattr(root / "d", "user.label") == b"secret"

    def test_a_security_context_goes_through_xattrmap(self, tmp_path: Path) -> None:
        rules = ":bad:all:user.no.:user.no.: :map:security.:user.virtiofs.:"
        with Connection(tmp_path, xattrmap=rules) as connection:
            for number, (label, error) in enumerate(
                [(b"security.selinux", 0), (b"user.no.label", errno.EPERM)]
            ):
                extensions = security_extension((label, b"secret"))
                name = b"%d\0" % number
                answer = connection.ask(Opcode.MKDIR, self.MKDIR, name, extensions=extensions)
                assert answer.error == error
        assert os.getxattr(tmp_path / "0", "user.virtiofs.security.selinux") == b"secret"
        assert os.listdir(tmp_path) == ["0"]

    @pytest.mark.parametrize(
        ("opcode", "arguments"),
        [
            (Opcode.MKDIR, abi.MKDIR_IN.pack(0o755, 0)),
            (Opcode.CREATE, abi.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0)),
            (Opcode.TMPFILE, abi.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0)),
        ],
    )
    def test_what_cannot_be_labelled_is_not_left_behind(
        self, connection: Connection, root: Path, opcode: Opcode, arguments: bytes
    ) -> None:
        extensions = security_extension((b"nonsense", b"x"))
        answer = connection.ask(opcode, arguments, b"d\0", extensions=extensions)
        assert answer.error == errno.EOPNOTSUPP
        assert os.listdir(root) == []
        assert len(connection.fs.inodes) == 1
        assert len(connection.fs.handles) == 0

    @pytest.mark.parametrize(
        "extensions",
        [
            abi.EXT_HEADER.pack(0, 32),
            abi.EXT_HEADER.pack(7, 32),
            abi.EXT_HEADER.pack(16, 32),
            abi.EXT_HEADER.pack(8, 32),
            groups_extension(1)[:-4] + b"\0" * 4 + groups_extension()[:4] + b"\xff" * 4,
            abi.EXT_HEADER.pack(16, 32) + struct.pack("=II", 2, 1),
            abi.EXT_HEADER.pack(16, 32) + struct.pack("=II", 2**32 - 1, 1),
            abi.SECCTX_HEADER.pack(8, 1),
            abi.SECCTX_HEADER.pack(24, 1) + abi.SECCTX.pack(9) + b"user.a\0x",
            abi.SECCTX_HEADER.pack(24, 1) + abi.SECCTX.pack(1) + b"user.abc",
            abi.SECCTX_HEADER.pack(24, 31) + abi.SECCTX.pack(1) + b"user.a\0x",
        ],
    )
    def test_a_malformed_one_is_einval(
        self, connection: Connection, root: Path, extensions: bytes
    ) -> None:
        answer = connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0", extensions=extensions)
        assert answer == (errno.EINVAL, b"")
        assert os.listdir(root) == []

    def test_more_extensions_than_message_is_einval(self, connection: Connection) -> None:
        data = bytearray(message(Opcode.MKDIR, self.MKDIR, b"d\0"))
        struct.pack_into("=H", data, 36, 0xFFFF)
        reply = connection.runner.run(connection.send(bytes(data)))
        assert reply is not None
        assert parse(reply, 2).error == errno.EINVAL

    def test_groups_reach_the_operation(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Caller] = []

        def mkdir(caller: Caller, *_: object) -> None:
            seen.append(caller)
            raise OSError(errno.ENOSPC, "")

        monkeypatch.setattr(connection.fs, "mkdir", mkdir)
        connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0", extensions=groups_extension(7, 8, 9))
        connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0")
        assert [caller.groups for caller in seen] == [(7, 8, 9), None]


NO_ANSWER = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}
WITH_NAMES = [row for row in OPERATIONS.values() if row.names]


class TestMalformed:
    def ask(self, connection: Connection, data: bytes) -> int | None:
        reply = connection.runner.run(connection.send(data))
        return None if reply is None else parse(reply, 2).error

    @pytest.mark.parametrize(
        "opcode",
        [code for code, row in sorted(OPERATIONS.items()) if row.args.size],
        ids=lambda code: Opcode(code).name,
    )
    def test_too_short(self, connection: Connection, opcode: int) -> None:
        size = OPERATIONS[opcode].args.size
        for length in {0, 1, size // 2, size - 1}:
            error = self.ask(connection, message(opcode, bytes(length)))
            assert error == (None if opcode in NO_ANSWER else errno.EINVAL)

    @pytest.mark.parametrize(
        "opcode",
        [code for code, row in sorted(OPERATIONS.items()) if not row.data],
        ids=lambda code: Opcode(code).name,
    )
    def test_too_long(self, connection: Connection, opcode: int) -> None:
        row = OPERATIONS[opcode]
        data = message(opcode, bytes(row.args.size), b"n\0" * row.names, b"more")
        assert self.ask(connection, data) == (None if opcode in NO_ANSWER else errno.EINVAL)

    @pytest.mark.parametrize("row", WITH_NAMES, ids=lambda row: row.opcode.name)
    def test_a_name_without_its_nul(self, connection: Connection, row: Operation) -> None:
        for complete in range(row.names):
            data = message(row.opcode, bytes(row.args.size), b"n\0" * complete, b"name")
            assert self.ask(connection, data) == errno.EINVAL

    def test_a_length_that_is_not_the_messages(self, connection: Connection) -> None:
        data = bytearray(message(Opcode.STATFS))
        for length in (0, 39, 41, 2**32 - 1):
            struct.pack_into("=I", data, 0, length)
            assert self.ask(connection, bytes(data)) == errno.EINVAL

    @pytest.mark.parametrize("length", [0, 1, 39])
    def test_less_than_a_header_cannot_be_answered(
        self, connection: Connection, length: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self.ask(connection, message(Opcode.STATFS)[:length]) is None
        assert "dropped" in caplog.text

    @pytest.mark.parametrize("opcode", [0, 7, 19, 54, 4096, 436207616, 2**32 - 1])
    def test_an_unknown_opcode_is_enosys(self, connection: Connection, opcode: int) -> None:
        assert self.ask(connection, message(opcode, b"anything")) == errno.ENOSYS

    @pytest.mark.parametrize("size", [0, 4, 6, 2**32 - 1])
    def test_a_write_of_another_size_than_its_data(
        self, connection: Connection, root: Path, size: int
    ) -> None:
        (root / "f").write_bytes(b"before")
        nodeid = connection.lookup(b"f")
        arguments = write_in(connection.open(nodeid), 0, size)
        answer = connection.ask(Opcode.WRITE, arguments, b"12345", nodeid=nodeid)
        assert answer.error == errno.EINVAL
        assert (root / "f").read_bytes() == b"before"

    @pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS])
    @pytest.mark.parametrize("size", [ROOM + 1, 2**32 - 1])
    def test_more_than_there_is_room_for(
        self, connection: Connection, root: Path, opcode: Opcode, size: int
    ) -> None:
        assert connection.ask(opcode, read_in(1, 0, size)).error == errno.EINVAL

    @pytest.mark.parametrize("count", [0, 1, 3, 2**32 - 1])
    def test_forgets_that_are_not_there(
        self, connection: Connection, root: Path, count: int
    ) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        forgets = abi.FORGET_ONE.pack(nodeid, 1) * 2
        connection.tell(Opcode.BATCH_FORGET, abi.BATCH_FORGET_IN.pack(count), forgets)
        assert len(connection.fs.inodes) == 2

    def test_an_offset_beyond_what_a_file_can_have(
        self, connection: Connection, root: Path
    ) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fh = connection.open(nodeid)
        for opcode, arguments in (
            (Opcode.READ, read_in(fh, -1, 4)),
            (Opcode.WRITE, write_in(fh, -1, 4) + b"data"),
            (Opcode.FALLOCATE, abi.FALLOCATE_IN.pack(fh, -1, 1, 0)),
            (Opcode.FALLOCATE, abi.FALLOCATE_IN.pack(fh, 0, -1, 0)),
        ):
            assert connection.ask(opcode, arguments, nodeid=nodeid).error == errno.EINVAL
