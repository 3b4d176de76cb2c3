"""Names of capabilities (linux/capability.h), and the text that adds and takes some away."""

from __future__ import annotations

_NAMES = """
chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot
sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease
audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read
perfmon bpf checkpoint_restore
"""
NUMBERS = {name: number for number, name in enumerate(_NAMES.split())}
"""The numbers by name, without CAP_ and in lower case."""


def parse_modcaps(text: str) -> dict[str, bool]:
    """Whether each capability named is to be kept: ``+NAME`` or ``-NAME``, several by colons.

    ValueError, with what is wrong.
    """
    wanted = {}
    for word in text.split(":"):
        name = word[1:].lower().removeprefix("cap_")
        if word[:1] not in ("+", "-") or name not in NUMBERS:
            raise ValueError(f"{word!r} is not + or - and the name of a capability")
        wanted[name] = word[0] == "+"
    return wanted
