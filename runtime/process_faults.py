"""An error in one process of a distributed run is printed once and ends all processes.

The processes share the store of PyTorch's process group (MASTER_ADDR, MASTER_PORT). The process that fails
prints its error and writes its exit code there. A thread of every other process polls for it, since the main
thread may hang in a collective. Another thread ends the process at the second SIGINT or SIGTERM.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from subprocess import Popen
from typing import Any

_SECONDS_BETWEEN_LOOKS = 0.2
# Time for another process to report the error that broke a connection.
_SECONDS_OF_GRACE = 3.0
# Time for the others to see an error before process 0 ends, and the store with it.
_SECONDS_TO_BE_SEEN = 5.0
_SECONDS_TO_CONNECT = 20.0
# For process 0, which hosts the store: if there is none by then, there will be none.
_SECONDS_TO_FIND_OWN = 1.0
# Grace period after process 0 has ended.
_SECONDS_WITHOUT_STORE = 30.0


class _Watch(threading.Thread):
    """Polls for errors of other processes and for failed child processes."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(name="process-faults", daemon=True)
        self.rank, self.world_size = rank, world_size
        self.children: Sequence[Popen[bytes]] = ()
        self.store: Any = None
        self._ended = threading.Event()
        self._lost: float | None = None
        # The store of torchrun outlives restarted processes.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        names = ("first", "fault", "seen")
        self._first, self._fault, self._seen = (f"face_coreset/{name}/{attempt}" for name in names)

    def run(self) -> None:
        """Poll until the process ends."""
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            self._look_at_children()
            self._look_at_store()

    def stop(self) -> None:
        """Stop the thread and wait for its last call to the store.

        A call that returned during interpreter shutdown would abort the process.
        """
        self._ended.set()
        if threading.current_thread() is not self:
            self.join(timeout=_SECONDS_TO_CONNECT)

    def is_first_fault(self) -> bool:
        """Whether this process is the first to report an error, and should print it."""
        self._connect(_SECONDS_TO_CONNECT if self.rank else _SECONDS_TO_FIND_OWN)
        if self.store is None:
            return True
        try:
            return int(self.store.add(self._first, 1)) == 1
        except RuntimeError:
            return True

    def end_others(self, code: int) -> None:
        """Make the other processes exit with this code; waits until they have seen it or a timeout."""
        if self.store is not None:
            try:
                self.store.set(self._fault, f"{self.rank} {code}")
            except RuntimeError:
                return
        self.wait_until_seen()

    def wait_until_seen(self) -> None:
        """Wait until all other processes have seen the error, or a timeout."""
        deadline = time.monotonic() + _SECONDS_TO_BE_SEEN
        while self.store is not None and time.monotonic() < deadline:
            try:
                if self.store.add(self._seen, 0) >= self.world_size - 1:
                    return
            except RuntimeError:
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS / 4)

    def _connect(self, seconds: float) -> None:
        address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT")
        if self.store is None and port is not None:
            # Imported late: `runtime.command` uses this module and must not load torch.
            from torch import distributed

            try:
                self.store = distributed.TCPStore(  # type: ignore[attr-defined]
                    address,
                    int(port),
                    is_master=False,
                    timeout=timedelta(seconds=seconds),
                    wait_for_workers=False,
                )
            except (RuntimeError, ValueError):
                return

    def _look_at_store(self) -> None:
        try:
            self._connect(1.0)
            if self.store is None or not self.store.check([self._fault]):
                return
            rank, code = map(int, self.store.get(self._fault).decode().split())
            if rank == self.rank:
                self._ended.set()
                return
            self.store.add(self._seen, 1)
        except RuntimeError:
            self._lost = self._lost or time.monotonic()
            if time.monotonic() - self._lost > _SECONDS_WITHOUT_STORE:
                _say(f"process {self.rank}: process 0 has ended without a message.")
                self.exit(1)
            return
        if self.rank == 0:
            # Process 0 ends last, because it hosts the store.
            self.wait_until_seen()
        self.exit(code)

    def _look_at_children(self) -> None:
        for place, child in enumerate(self.children, 1):
            code = child.poll()
            if code:
                # Its message in the store, if any, is more specific.
                self._look_at_store()
                if code < 0:
                    name = signal.Signals(-code).name
                    _say(f"process {self.rank + place} was ended by {name}, as when memory is short.")
                self.exit(code if code > 0 else 128 - code)

    def exit(self, code: int) -> None:
        """End this process and its children immediately."""
        for child in self.children:
            child.kill()
        sys.stdout.flush()
        os._exit(code)


_watch: _Watch | None = None


def watch(rank: int, world_size: int, children: Sequence[Popen[bytes]] = ()) -> None:
    """Start watching: an error in another process ends this one, and `leave` ends the others.

    `children`: processes that this one started, ranks `rank + 1` and up; the list may still grow. A second
    call sets them.
    """
    global _watch
    if world_size < 2:
        return
    if _watch is None:
        _watch = _Watch(rank, world_size)
        _watch.start()
        # A daemon thread inside native code during interpreter shutdown would abort the process.
        atexit.register(stop_watching)
    if children:
        _watch.children = children


def stop_watching() -> None:
    """Stop watching: from now on each process ends on its own."""
    if _watch is not None:
        _watch.stop()


def is_first() -> bool:
    """Whether this is process 0, which prints for all."""
    return _watch is None or _watch.rank == 0


def is_watching() -> bool:
    """Whether this process is one of several."""
    return _watch is not None


def leave(text: str, code: int, *, may_follow: bool) -> int:
    """Print why this process ends and return its exit code; with several processes, end all of them.

    `may_follow`: the error may be a consequence of another process's error, such as a broken connection; the
    other process then gets time to report first.
    """
    if _watch is None:
        _say(text)
        return code
    if may_follow:
        time.sleep(_SECONDS_OF_GRACE)
    if _watch.is_first_fault():
        # Printed before the others end, because one of them may end this process.
        _say(text)
        _watch.end_others(code)
        _watch.exit(code)
    # Another process reported first; the thread ends this process.
    _watch.join(timeout=_SECONDS_TO_BE_SEEN)
    _watch.exit(code)
    return code


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """End the process immediately at the second SIGINT or SIGTERM, even if it hangs.

    Python's signal handlers wait for the main thread to return from native code; the wakeup file descriptor
    does not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _count_no_signals_of_forks()
    threading.Thread(target=_count_signals, args=(reader,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()


@cache
def _count_no_signals_of_forks() -> None:
    """Reset the descriptor in forked loader workers, which receive the same Ctrl-C."""
    # Not on Windows, which does not fork.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))


def _count_signals(reader: socket.socket) -> None:
    count = 0
    with reader:
        while received := reader.recv(1):
            signum = received[0]
            count += signum in (signal.SIGINT, signal.SIGTERM)
            if count < 2:
                continue
            os.write(2, b"\nstopped\n")
            for child in _watch.children if _watch is not None else ():
                child.kill()
            os._exit(128 + signum)


def _say(text: str) -> None:
    # A progress bar, possibly of another process, may be on this line.
    begins = "\n" if sys.stderr.isatty() or _watch is not None else ""
    sys.stderr.write(f"{begins}{text}\n")
    sys.stderr.flush()
