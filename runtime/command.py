"""The frame of a command: argument parser, --device, exit codes, error output."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, TextIO

from runtime.disk_faults import fault_text
from runtime.errors import InputError, InputWarning
from runtime.escaping import escaped_text
from runtime.files import private_files
from runtime.process_faults import is_first, is_watching, leave, second_signal_ends

if TYPE_CHECKING:
    import torch

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
# As for a process ended by SIGPIPE.
EXIT_NO_READER = 141
EXIT_BUG = 1
# Progress bars move the cursor by these only.
_CURSOR_MOVES = re.compile(r"(\n|\x1b\[A)*")


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows defaults and does not accept abbreviated flags."""
    return _Parser(
        description=description,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


def add_device(group: argparse._ActionsContainer) -> None:
    """Add --device."""
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")


def resolve_device(text: str) -> torch.device:
    """Resolve --device.

    Raises:
        InputError: the device does not exist.
    """
    # Imported late, so that --help and commands without a network start fast.
    import torch

    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError(f"--device {text}: expected auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {text}: expected auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {text}: this machine shows {torch.cuda.device_count()} GPUs to PyTorch. "
            "Use --device cpu, or install a CUDA build of torch."
        )
    return device


def run_command(work: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    User errors (InputError, a full disk, missing permission) are printed without a traceback. All files that
    the command writes are private. With several processes an error ends all of them and is printed once.
    """
    with escaped_output():
        return _run(work)


def _run(work: Callable[[], None]) -> int:
    try:
        with second_signal_ends(), private_files(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            work()
            sys.stdout.flush()
    except InputError as fault:
        return leave(f"error: {fault}", EXIT_BAD_INPUT, may_follow=False)
    except BrokenPipeError:
        if is_watching():
            return leave(traceback.format_exc(), EXIT_BUG, may_follow=True)
        # The reader of the output, such as `head`, has exited.
        return EXIT_NO_READER
    except KeyboardInterrupt:
        return leave("interrupted", EXIT_INTERRUPTED, may_follow=False)
    except Exception as fault:
        if isinstance(fault, OSError) and (text := fault_text(fault)) is not None:
            return leave(f"error: {text}", EXIT_BAD_INPUT, may_follow=False)
        if not is_watching():
            raise
        return leave(traceback.format_exc(), EXIT_BUG, may_follow=True)
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print an InputWarning as a sentence, any other warning as Python does."""
    text = f"warning: {message}\n"
    if issubclass(category, InputWarning):
        if not is_first():
            return
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape control characters and characters that the console cannot encode in all printed text."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        _Escaping(stream) if isinstance(stream, io.TextIOWrapper) else stream for stream in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # noqa: PERF203 - two streams
                # A full disk or a closed pipe: Python would try to flush again at exit.
                with suppress(OSError), open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), stream.fileno())
        sys.stdout, sys.stderr = before


class _Escaping(io.TextIOWrapper):
    """A stream that writes to the buffer of another one without closing it."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        """Write escaped text. The leading carriage return of progress bars is kept."""
        if not _CURSOR_MOVES.fullmatch(text):
            bar = text.startswith("\r")
            super().write("\r" * bar + escaped_text(text[bar:]))
        else:
            super().write(text)
        return len(text)

    def close(self) -> None:
        """Flush only; the buffer belongs to the other stream."""
        with suppress(ValueError, OSError):
            self.flush()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Escape the message, which may contain any file name."""
        super().error(escaped_text(message))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults that say something, and keep the line breaks of descriptions."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or default is False or default == []:
            return action.help
        return super()._get_help_string(action)
