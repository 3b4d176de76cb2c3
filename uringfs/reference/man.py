"""Man pages, made of the parser and so of the table of options.

``python -m uringfs.reference.man DIRECTORY`` writes them there: uringfs.1, one for each command,
and one for each other program. Their language is that of man(7).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from uringfs import __version__
from uringfs.cli.commands import make_parser
from uringfs.cli.helper import MountExit, make_helper_parser
from uringfs.errors import Exit
from uringfs.optiondoc import EXITS
from uringfs.reference.shape import Command, Flag, command_of, commands_of

_MOUNT_EXITS = {
    MountExit.OK: "the mount is live",
    MountExit.USAGE: "wrong usage: an unknown option, a value out of range",
    MountExit.SYSTEM: "the system cannot: no process could be made",
    MountExit.INTERRUPTED: "interrupted by the user",
    MountExit.FAILED: "the mount failed; the line on standard error says why",
}

_FILES = (
    (r"/run/uringfs/*.sock", "control sockets of root's mounts, of mode 0600"),
    (r"$XDG_RUNTIME_DIR/uringfs/*.sock", "those of other users' mounts"),
    (r"/etc/uringfs/NAME.toml", "options of the mount of the unit uringfs@NAME.service"),
)


def pages() -> dict[str, str]:
    """Each page by the name of its file."""
    commands = commands_of(make_parser())
    helper = command_of(
        make_helper_parser(), "mount.uringfs", "mirror a directory, on behalf of mount(8)"
    )
    return {
        "uringfs.1": _overview(commands),
        **{f"uringfs-{each.name}.1": _of_command(each) for each in commands},
        "uringfs-virtiofsd.1": _of_virtiofsd(),
        "mount.uringfs.8": _of_helper(helper),
    }


def _overview(commands: Sequence[Command]) -> str:
    parser = make_parser()
    return _page(
        "uringfs", 1, "a FUSE passthrough file system whose data moves through one io_uring",
        synopsis=[r"\fBuringfs\fR \fICOMMAND\fR [\fIOPTION\fR]...", r"\fBuringfs \-\-version\fR"],
        description=[parser.description or ""],
        sections={
            "COMMANDS": _terms(
                (rf"\fBuringfs\-{_plain(each.name)}\fR(1)", each.summary) for each in commands
            ),
            "EXIT STATUS": _exits(EXITS),
            "FILES": _terms((rf"\fI{_plain(name)}\fR", text) for name, text in _FILES),
        },
        see=[*(f"uringfs-{each.name}(1)" for each in commands), "mount.uringfs(8)"],
    )  # fmt: skip


def _of_command(command: Command) -> str:
    places = "".join(
        f" [{_place(each.name)}]" if each.optional else f" {_place(each.name)}"
        for each in command.places
    )
    name = f"uringfs-{command.name}"
    return _page(
        name, 1, command.summary,
        synopsis=[rf"\fBuringfs {_plain(command.name)}\fR [\fIOPTION\fR]...{places}"],
        description=[command.description],
        sections={"OPTIONS": _options(command), "EXIT STATUS": _exits(EXITS)},
        see=["uringfs(1)", "mount.uringfs(8)", "fuse(4)"],
    )  # fmt: skip


def _of_virtiofsd() -> str:
    return _page(
        "uringfs-virtiofsd", 1, "serve a directory to a virtual machine, for libvirt",
        synopsis=[r"\fBuringfs\-virtiofsd\fR [\fIOPTION\fR]..."],
        description=[
            "The same as uringfs serve, for what starts a program and knows of no commands: "
            "libvirt, which finds it by /usr/share/qemu/vhost-user/50-uringfs.json.",
        ],
        sections={"EXIT STATUS": _exits(EXITS)},
        see=["uringfs-serve(1)"],
    )  # fmt: skip


def _of_helper(command: Command) -> str:
    return _page(
        command.name, 8, command.summary,
        synopsis=[
            r"\fBmount \-t fuse.uringfs\fR [\fB\-o\fR \fIOPT\fR[=\fIVALUE\fR],...] "
            r"\fISOURCE\fR \fIMOUNTPOINT\fR",
            r"\fBmount.uringfs\fR \fISOURCE\fR \fIMOUNTPOINT\fR [\fIOPTION\fR]...",
        ],
        description=[
            command.description,
            "An entry of fstab(5) is SOURCE MOUNTPOINT fuse.uringfs OPTIONS 0 0. What is logged "
            "goes to the machine's log, unless log_file says otherwise.",
        ],
        sections={"OPTIONS": _options(command), "EXIT STATUS": _exits(_MOUNT_EXITS)},
        see=["uringfs-mount(1)", "uringfs-umount(1)", "mount(8)", "fstab(5)"],
    )  # fmt: skip


def _page(
    name: str, section: int, summary: str, *, synopsis: Sequence[str], description: Sequence[str],
    sections: Mapping[str, Iterator[str]], see: Sequence[str],
) -> str:  # fmt: skip
    """``synopsis`` is written as man(7) has it, the other texts are plain."""
    lines = [
        r".\" Made by `python -m uringfs.reference.man` from the table of options.",
        f'.TH "{_plain(name.upper())}" {section} "" "uringfs {__version__}" "uringfs"',
        ".SH NAME",
        rf"{_plain(name)} \- {_plain(summary)}",
        ".SH SYNOPSIS",
        ".nh",
        *(line for each in synopsis for line in (each, ".br")),
        ".hy",
        ".SH DESCRIPTION",
        *(line for each in description for line in (_text(each), ".PP")),
    ]
    for title, body in sections.items():
        lines += [f".SH {title}", *body]
    lines += [".SH SEE ALSO", ", ".join(_reference(each) for each in see)]
    return "\n".join(lines) + "\n"


def _options(command: Command) -> Iterator[str]:
    for title, flags in command.groups:
        yield f".SS {_plain(title)}"
        yield from _terms((_flag(each), each.help) for each in flags)


def _flag(flag: Flag) -> str:
    names = ", ".join(rf"\fB{_plain(name)}\fR" for name in flag.names)
    if not flag.value:
        return names
    joint = "=" if flag.names[-1].startswith("--") else " "
    return rf"{names}{joint}\fI{_plain(flag.value)}\fR"


def _exits(meanings: Mapping[Exit, str] | Mapping[MountExit, str]) -> Iterator[str]:
    return _terms((rf"\fB{status.value}\fR", text) for status, text in meanings.items())


def _terms(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    for term, text in pairs:
        yield from (".TP", term, _text(text))


def _place(name: str) -> str:
    return rf"\fI{_plain(name)}\fR"


def _reference(name: str) -> str:
    page, _, section = name.partition("(")
    return rf"\fB{_plain(page)}\fR({section}"


def _plain(text: str) -> str:
    return text.replace("\\", r"\[rs]").replace("-", r"\-").replace("'", r"\[aq]")


def _text(text: str) -> str:
    """Running text; a line of it must not begin as a request does."""
    plain = _plain(text.replace("`", ""))
    return r"\&" + plain if plain.startswith((".", "'")) else plain


def write(directory: Path) -> None:
    """Write every page there, with a directory for each section: man1/uringfs.1 ..."""
    for name, text in pages().items():
        path = directory / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
