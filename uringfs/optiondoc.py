"""docs/options.md, made from the table of options: ``python -m uringfs.optiondoc``."""

from __future__ import annotations

from uringfs.config import OPTIONS, SECTIONS, SERVE_OPTIONS, Option, VhostConfig
from uringfs.errors import Exit
from uringfs.sources import option_table

_HEAD = """\
# Options

<!-- Made by `python -m uringfs.optiondoc`; edit uringfs/config/sections.py instead. -->

Every option of `uringfs mount` can be given as a flag (`--entry-timeout 1 --ro --no-pump`) or in
the style of fstab (`-o entry_timeout=1,ro,nopump`), or in [a file](#a-file-of-options). A flag
wins over `-o`, and both over the file. Times are in seconds, sizes in bytes.
"""

EXITS = {
    Exit.OK: "done; for `mount`, unmounted in good order",
    Exit.FAILED: "failed, for a reason that has no status of its own",
    Exit.USAGE: "unknown option, value out of range, options that exclude each other",
    Exit.SOURCE: "the source is missing, is no directory, or cannot be read",
    Exit.MOUNTPOINT: "the mount point is missing, busy, not empty, or inside the source",
    Exit.FUSE: "no /dev/fuse, not permitted to mount, or no pyfuse3 for `--session pyfuse3`",
    Exit.IO_URING: "`--async-io` was asked for and io_uring is not available",
    Exit.NOT_SERVED: "no server answers for that mount point",
}

_SOURCES = """\
## Several sources

`uringfs mount --mount /images=/srv/a --mount /iso=/srv/b,ro MOUNTPOINT` shows each SOURCE at its
PATH below the mount point; `--mount PATH=SOURCE[,OPTION...]` then takes the place of SOURCE. The
directories above them exist for them, and are read-only (EROFS). Between two sources, rename(2),
link(2) and copy_file_range(2) say EXDEV. A comma in SOURCE is written `\\,`. These options can be
given for one source; what is not given is as for the whole mount:

| option | meaning |
|---|---|
"""

_TAIL = """\
## A file of options

`uringfs mount --config FILE` and `uringfs serve --config FILE` read TOML, with the names above: a
switch is `true` or `false`, a number a number, all else text; what can be repeated may be a list.
`source`, `mountpoint` and, in the place of `source`, `mount` say what is mounted where:

```toml
source = "/srv/data"
mountpoint = "/mnt/data"
entry_timeout = 1.5
ro = true
pump = false
uid_map = ["0:1000:1", "1:100000:65536"]
```

```toml
mount = ["/images=/srv/images", "/iso=/srv/iso,ro"]
mountpoint = "/mnt/all"
```

What is given besides wins: each option by itself, and of SOURCE and MOUNTPOINT what is there; one
word alone is MOUNTPOINT. A file is for one mount. Paths are as on the command line: from the
current directory. An unknown name or a value of another kind is one line that names the file, and
status 2.

## The control socket

Each mount listens on a unix socket of mode 0600, in `/run/uringfs` for root and in
`$XDG_RUNTIME_DIR/uringfs` for others, or where `control` says. It takes JSON, an object a line, and
answers each with one: `{"ok": true, ...}` or `{"ok": false, "error": "..."}`.

| request | answer |
|---|---|
| `{"command": "status"}` | options in force, session, back end, what was probed, counters |
| `{"command": "async-io", "value": "status"}` | whether data moves with io_uring |
| `{"command": "async-io", "value": "on"}` | the same, after switching; `off` switches back |
| `{"command": "mounts"}` | the sources of a mount made with `--mount` |
| `{"command": "mount", "value": "/iso=/srv/b,ro"}` | the same, after adding one |
| `{"command": "unmount", "value": "/iso"}` | the same, without it; EBUSY if a file is open |
| `{"command": "detach", "value": "/iso"}` | the same, but open files live on |

The request `mount` comes with a descriptor of the source (SCM_RIGHTS), since in its sandbox the
server cannot reach it; a path alone is enough with `sandbox=none`.

`uringfs ctl MOUNTPOINT status` and `uringfs ctl MOUNTPOINT async-io on` send these. A switch
affects requests that come after it; those under way end where they began, and open files live on.

What the kernel knows of a source that is taken away it is told to forget. Programs that have it as
working directory do not count as open files: they see on what they saw.

## Exit status

| status | meaning |
|---|---|
"""


_ALL = {**OPTIONS, **SERVE_OPTIONS}


def markdown() -> str:
    """The whole page."""
    lines = [_HEAD]
    for section in (*SECTIONS, VhostConfig):
        title = (section.__doc__ or "").partition(".")[0]
        lines += [f"## {title}\n", "| option | value | default | meaning |", "|---|---|---|---|"]
        lines += [_row(row) for row in _ALL.values() if row.section is section]
        lines.append("")
    lines += [_SOURCES + "\n".join(f"| `{name}` | {text} |" for name, text in option_table()), ""]
    exits = "\n".join(f"| {status.value} | {meaning} |" for status, meaning in EXITS.items())
    return "\n".join(lines) + "\n" + _TAIL + exits + "\n"


def _row(row: Option) -> str:
    names = " ".join(f"`{name}`" for name in (row.name, *row.aliases))
    return f"| {names} | {row.value or 'on, off'} | {row.shown} | {row.help} |"


if __name__ == "__main__":
    print(markdown(), end="")
