"""Starts a command again such that its large arrays lie in huge pages, if the machine offers them.

A step on a CPU writes hundreds of megabytes into memory that it has just got from the system, which maps pages of 4 KiB
one by one. With `glibc.malloc.hugetlb=1`, the C library asks for pages of 2 MiB instead (glibc 2.35, "Memory Allocation
Tunables"). It reads the setting when a process starts, so the process has to be replaced. LM_HUGE_PAGES=0 prevents it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SWITCH, TUNABLES, SETTING = "LM_HUGE_PAGES", "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # the mode in brackets: always, madvise or never
OLDEST = (2, 35)  # the first version of glibc that has the setting


def restart_with_huge_pages() -> None:
    """Replaces this process by the same command with huge pages, unless they are set, switched off or not offered."""
    tunables = os.environ.get(TUNABLES, "")
    if SETTING in tunables or os.environ.get(SWITCH) == "0" or not _are_offered():
        return
    joined = ":".join(filter(None, [tunables, f"{SETTING}=1"]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, TUNABLES: joined})


def has_setting() -> bool:
    """Returns whether the C library of this system knows the setting."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= OLDEST
    except (AttributeError, OSError, ValueError):  # another system or another C library
        return False


def _are_offered() -> bool:
    try:
        return has_setting() and "[madvise]" in KERNEL.read_text()  # with [always], they are used anyway
    except OSError:
        return False


def are_used() -> bool:
    """Returns whether the C library asks for huge pages in this process."""
    return f"{SETTING}=1" in os.environ.get(TUNABLES, "") and _are_offered()
