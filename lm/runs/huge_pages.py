"""Restarts a command so that its large arrays are allocated in huge pages, if the machine supports them.

On a CPU, a training step writes hundreds of megabytes to newly allocated memory, which the operating system maps in
pages of 4 KiB, one at a time. With `glibc.malloc.hugetlb=1`, the C library requests pages of 2 MiB instead (glibc 2.35,
"Memory Allocation Tunables"). The library reads this setting only when a process starts, so the process has to be
replaced. LM_HUGE_PAGES=0 prevents the restart.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SWITCH, TUNABLES, SETTING = "LM_HUGE_PAGES", "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # the mode in brackets: always, madvise or never
OLDEST = (2, 35)  # the first version of glibc that has the setting


def restart_with_huge_pages() -> None:
    """Replaces this process with a new one that runs the same command with huge pages.

    Does nothing if the setting is already given, if LM_HUGE_PAGES=0, or if huge pages are not available.
    """
    tunables = os.environ.get(TUNABLES, "")
    if SETTING in tunables or os.environ.get(SWITCH) == "0" or not _are_offered():
        return
    joined = ":".join(filter(None, [tunables, f"{SETTING}=1"]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, TUNABLES: joined})


def has_setting() -> bool:
    """Returns whether the C library of this system supports the setting."""
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
    """Returns whether the C library requests huge pages in this process."""
    return f"{SETTING}=1" in os.environ.get(TUNABLES, "") and _are_offered()
