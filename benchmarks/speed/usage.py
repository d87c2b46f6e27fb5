"""Wall and CPU seconds, additional memory, and the load by other processes during a measurement.

Other processes distort a comparison of single- and multi-threaded code, so every benchmark prints the number
of cores that they used meanwhile. Reads the counters of Linux.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_RESULT = "USAGE "
_STATUS = Path("/proc/self/status")
# Shorter than this, the kernel's ticks are too coarse to tell who was busy.
_SHORTEST_TOLD = 0.3
BUSY = 0.1


@dataclass
class Usage:
    """Seconds, cores that others kept busy, and the rise of the resident memory in MiB; a remark."""

    wall: float = 0.0
    cpu: float = 0.0
    others: float = 0.0
    extra_mib: float = 0.0
    peak_mib: float = 0.0
    remark: str = ""


@contextmanager
def measured() -> Iterator[Usage]:
    """Measure a block of this process and its children."""
    usage = Usage()
    before = _resident("VmRSS")
    # Forgets the peak of what was prepared, so that the next one is of the block.
    Path("/proc/self/clear_refs").write_text("5")
    cpu, busy, start = _own_seconds(), _busy_seconds(), time.perf_counter()
    yield usage
    usage.wall = time.perf_counter() - start
    usage.cpu = _own_seconds() - cpu
    if usage.wall > _SHORTEST_TOLD:
        usage.others = max(0.0, (_busy_seconds() - busy - usage.cpu) / usage.wall)
    usage.peak_mib = _resident("VmHWM")
    usage.extra_mib = max(0.0, usage.peak_mib - before)


def hand_over(usage: Usage) -> None:
    """Print what `in_process_of_its_own` reads."""
    print(_RESULT + json.dumps(asdict(usage)), flush=True)


def in_process_of_its_own(script: str, arguments: Sequence[str]) -> Usage:
    """Run a script that calls `hand_over`, so that its memory and its caches are its own.

    Raises:
        RuntimeError: the script failed.
    """
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(arguments)}: failed.\n{done.stderr}")
    return Usage(**json.loads(lines[-1].removeprefix(_RESULT)))


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds() -> float:
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def _resident(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) / 1024
