"""Completion for bash, zsh and fish: ``uringfs completion SHELL``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from uringfs.reference.shape import Command, Flag

PATHS = frozenset({"FILE", "PATH", "SOURCE", "MOUNTPOINT", "DIR", "DIRECTORY"})
"""What a value is called that is a path."""
TOP = ("--help", "--version")


def bash(commands: Sequence[Command]) -> str:
    """For bash 4 and later, with bash-completion or without."""
    cases = "\n".join(f"    {each.name})\n{_bash_case(each)}        ;;" for each in commands)
    names = " ".join([*(each.name for each in commands), *TOP])
    return f"""\
# bash completion for uringfs, made by `uringfs completion bash`
_uringfs() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words=
    # --flag=value is three words here.
    [[ $before == = ]] && before=${{COMP_WORDS[COMP_CWORD - 2]}}
    [[ $word == = ]] && word='' before=${{COMP_WORDS[COMP_CWORD - 1]}}
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W '{names}' -- "$word")
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -o bashdefault -o default -F _uringfs uringfs
"""


def _bash_case(command: Command) -> str:
    lines = ["        case $before in"]
    for names, words in _values(command):
        action = f"words='{words}'" if words else "return"
        lines.append(f"        {'|'.join(names)}) {action} ;;")
    flags = " ".join(name for flag in command.flags for name in flag.names)
    places = " ".join(word for place in command.places for word in place.choices)
    lines += [
        f"        *) words='{places}'",
        f"            [[ $word != -* ]] || words='{flags}' ;;",
        "        esac\n",
    ]
    return "\n".join(lines)


def _values(command: Command) -> Iterator[tuple[list[str], str]]:
    """Flags that take a value, and its choices; none for a path, or what nobody can guess."""
    for flag in command.flags:
        if flag.value:
            yield list(flag.names), " ".join(flag.choices)


def zsh(commands: Sequence[Command]) -> str:
    """For a directory in ``$fpath``, as ``_uringfs``."""
    described = "\n".join(f"        {_quoted(each.name + ':' + each.summary)}" for each in commands)
    cases = "\n".join(_zsh_case(each) for each in commands)
    return f"""\
#compdef uringfs
# zsh completion for uringfs, made by `uringfs completion zsh`
_uringfs() {{
    local -a commands=(
{described}
    )
    if ((CURRENT == 2)); then
        _describe command commands
        compadd -- {" ".join(TOP)}
        return
    fi
    shift words
    ((CURRENT--))
    case $words[1] in
{cases}
    esac
}}
if [[ $funcstack[1] == _uringfs ]]; then
    _uringfs "$@"
else
    compdef _uringfs uringfs
fi
"""


def _zsh_case(command: Command) -> str:
    specs = [_zsh_flag(name, flag) for flag in command.flags for name in flag.names]
    for place in command.places:
        colons = "::" if place.optional else ":"
        action = f"({' '.join(place.choices)})" if place.choices else "_files"
        specs.append(_quoted(f"{colons}{place.name.replace(':', ' ')}:{action}"))
    lines = "\n".join(f"            {spec} \\" for spec in specs)
    return (
        f"    {command.name})\n        _arguments -S \\\n{lines}\n            && return\n        ;;"
    )


def _zsh_flag(name: str, flag: Flag) -> str:
    text = "".join(f"\\{c}" if c in "[]:\\" else c for c in flag.help)
    if not flag.value:
        return _quoted(f"*{name}[{text}]")
    if flag.choices:
        action = f"({' '.join(flag.choices)})"
    else:
        action = "_files" if flag.value in PATHS else " "
    equals = "=" if name.startswith("--") else "+"
    return _quoted(f"*{name}{equals}[{text}]:{flag.value.replace(':', ' ')}:{action}")


def fish(commands: Sequence[Command]) -> str:
    """For a directory of fish's, as ``uringfs.fish``."""
    lines = ["# fish completion for uringfs, made by `uringfs completion fish`"]
    lines += [
        f"complete -c uringfs -n __fish_use_subcommand -f -a {each.name} -d {_quoted(each.summary)}"
        for each in commands
    ]
    for command in commands:
        seen = f"complete -c uringfs -n '__fish_seen_subcommand_from {command.name}'"
        for place in command.places:
            if place.choices:
                lines.append(f"{seen} -f -a {_quoted(' '.join(place.choices))}")
        lines += [f"{seen} {_fish_flag(flag)}" for flag in command.flags]
    return "\n".join(lines) + "\n"


def _fish_flag(flag: Flag) -> str:
    words = [
        f"-l {name.removeprefix('--')}" if name.startswith("--") else f"-s {name.removeprefix('-')}"
        for name in flag.names
    ]
    if flag.choices:
        words.append(f"-x -a {_quoted(' '.join(flag.choices))}")
    elif flag.value:
        words.append("-r -F" if flag.value in PATHS else "-x")
    return " ".join([*words, f"-d {_quoted(flag.help)}"])


def _quoted(text: str) -> str:
    """For a shell, in single quotes; fish takes what the others do."""
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS: Mapping[str, Callable[[Sequence[Command]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
