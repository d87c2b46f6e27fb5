"""A fault in one process of a run is printed once and ends all of its processes; none is left to wait.

The processes meet at the store that PyTorch's process group is made with (MASTER_ADDR, MASTER_PORT). The one
that fails prints why and leaves its exit code there. A thread of each other one looks for that, since its own
work may hang in a collective. So does a thread for signals: the second SIGINT or SIGTERM ends the process.
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
# A broken connection, which is the fault of another process, is told by that process in this time.
_SECONDS_OF_GRACE = 3.0
# For all others to have seen a fault: the store ends with process 0.
_SECONDS_TO_BE_SEEN = 5.0
_SECONDS_TO_CONNECT = 20.0
# Of process 0, in which the store is, or beside it: where there is none, none will come.
_SECONDS_TO_FIND_OWN = 1.0
# After process 0 has ended: others that end with it need no more.
_SECONDS_WITHOUT_STORE = 30.0


class _Watch(threading.Thread):
    """Looks for the fault of another process, and for a child process that ended with one."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(name="process-faults", daemon=True)
        self.rank, self.world_size = rank, world_size
        self.children: Sequence[Popen[bytes]] = ()
        self.store: Any = None
        self._ended = threading.Event()
        self._lost: float | None = None
        # The store of torchrun outlives the processes that it starts anew.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        names = ("first", "fault", "seen")
        self._first, self._fault, self._seen = (f"face_coreset/{name}/{attempt}" for name in names)

    def run(self) -> None:
        """Looks until the process ends."""
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            self._look_at_children()
            self._look_at_store()

    def stop(self) -> None:
        """Ends the thread; returns after its last call to the store, which takes no longer than a connection.

        Python would abort the process if that call came back while the interpreter ends.
        """
        self._ended.set()
        if threading.current_thread() is not self:
            self.join(timeout=_SECONDS_TO_CONNECT)

    def is_first_fault(self) -> bool:
        """Whether no other process has asked this before, so that this one's fault is to be printed."""
        self._connect(_SECONDS_TO_CONNECT if self.rank else _SECONDS_TO_FIND_OWN)
        if self.store is None:
            return True
        try:
            return int(self.store.add(self._first, 1)) == 1
        except RuntimeError:
            return True

    def end_others(self, code: int) -> None:
        """Has the other processes end with this exit code; returns when they have seen it, or are late."""
        if self.store is not None:
            try:
                self.store.set(self._fault, f"{self.rank} {code}")
            except RuntimeError:
                return
        self.wait_until_seen()

    def wait_until_seen(self) -> None:
        """Returns when all others have seen the fault, or are late."""
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
                _say(f"process {self.rank}: process 0 has ended without a word.")
                self.exit(1)
            return
        if self.rank == 0:
            # It ends last, since the store of the others ends with it.
            self.wait_until_seen()
        self.exit(code)

    def _look_at_children(self) -> None:
        for place, child in enumerate(self.children, 1):
            code = child.poll()
            if code:
                # What it left in the store says more.
                self._look_at_store()
                if code < 0:
                    name = signal.Signals(-code).name
                    _say(f"process {self.rank + place} was ended by {name}, as when memory is short.")
                self.exit(code if code > 0 else 128 - code)

    def exit(self, code: int) -> None:
        """Ends the process now, whatever its main thread waits for, and those that it started."""
        for child in self.children:
            child.kill()
        sys.stdout.flush()
        os._exit(code)


_watch: _Watch | None = None


def watch(rank: int, world_size: int, children: Sequence[Popen[bytes]] = ()) -> None:
    """From now on a fault of another process ends this one, and `leave` ends the others.

    `children`: processes of the run that this one has started, ranks `rank + 1` and on; the list may still
    grow. A second call adds them.
    """
    global _watch
    if world_size < 2:
        return
    if _watch is None:
        _watch = _Watch(rank, world_size)
        _watch.start()
        # A daemon thread that is in foreign code while Python ends would abort the process.
        atexit.register(stop_watching)
    if children:
        _watch.children = children


def stop_watching() -> None:
    """All processes end now, each for itself."""
    if _watch is not None:
        _watch.stop()


def is_first() -> bool:
    """Whether this is process 0, which speaks for all."""
    return _watch is None or _watch.rank == 0


def is_watching() -> bool:
    """Whether this process is one of several."""
    return _watch is not None


def leave(text: str, code: int, *, may_follow: bool) -> int:
    """Prints why this process ends and gives its exit code; under several processes, ends all of them.

    `may_follow`: the fault may be what follows from another process's, as a broken connection is; that one
    is then given time to be printed in its place.
    """
    if _watch is None:
        _say(text)
        return code
    if may_follow:
        time.sleep(_SECONDS_OF_GRACE)
    if _watch.is_first_fault():
        # Before the others end, of which one may end this process too.
        _say(text)
        _watch.end_others(code)
        _watch.exit(code)
    # Another one was first; the thread ends this process.
    _watch.join(timeout=_SECONDS_TO_BE_SEEN)
    _watch.exit(code)
    return code


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """In this block the second SIGINT or SIGTERM ends the process at once, though it may hang.

    Handlers of Python wait for the main thread to come back from foreign code. The bytes of the wakeup file
    descriptor do not. A signal without a handler ends the process as ever.
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
    """Loaders are forked with the same descriptor, and get the same Ctrl-C."""
    # Windows forks nothing.
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
            os.write(2, b"\nstopped at once\n")
            for child in _watch.children if _watch is not None else ():
                child.kill()
            os._exit(128 + signum)


def _say(text: str) -> None:
    # A progress bar may be under way on this line, or that of another process.
    begins = "\n" if sys.stderr.isatty() or _watch is not None else ""
    sys.stderr.write(f"{begins}{text}\n")
    sys.stderr.flush()
