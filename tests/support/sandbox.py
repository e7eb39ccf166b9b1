"""Runs a command under the restrictions that a systemd unit puts on system calls: python sandbox.py UNIT COMMAND…

Systemd itself cannot be started by a test; the lists of calls are its own, and the filter is made by the same library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 38, 65
ALWAYS = {"execve", "exit", "exit_group", "getrlimit", "rt_sigreturn"}  # systemd adds these to any list


def _calls(group: str) -> set[str]:
    if not group.startswith("@"):
        return {group}
    said = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    lines = [line.strip() for line in said.stdout.splitlines()[1:]]
    return {call for line in lines if line and not line.startswith("#") for call in _calls(line)}


def _allowed(unit: str) -> set[str]:
    allowed = set(ALWAYS) | _calls("@default")
    for filter_ in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        named = {call for group in filter_.lstrip("~").split() for call in _calls(group)}
        allowed = allowed - named if filter_.startswith("~") else allowed | named
    return allowed


def _restrict(unit: str) -> None:
    if "\nMemoryDenyWriteExecute=yes\n" in unit:
        ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0)  # kernels before 6.3 do not know it
    assert ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(REFUSE))
    for call in _allowed(unit):
        if (number := library.seccomp_syscall_resolve_name(call.encode())) >= 0:
            assert library.seccomp_rule_add(context, ALLOW, number, 0) == 0
    assert library.seccomp_load(context) == 0


if __name__ == "__main__":
    _restrict(Path(sys.argv[1]).read_text())
    os.execv(sys.argv[2], sys.argv[2:])
