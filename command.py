"""What commands share: flags that several of them have, exit codes, and how a fault is told.

Only commands import this; what they do lives elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch

from coreset import AGGREGATORS
from errors import InputError, InputWarning
from process_faults import is_first, is_watching, leave, second_signal_ends

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BUG = 1


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows every default and takes no shortened flags; `description`: a module's docstring."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


def add_aggregator(group: argparse._ActionsContainer, *, several: bool = False) -> None:
    """Adds --aggregator: a name of the registry, or `several`."""
    group.add_argument(
        "--aggregator",
        choices=AGGREGATORS,
        default=["coreset"] if several else "coreset",
        nargs="+" if several else None,
        help="how the faces of a set become one descriptor" + (", one or more" if several else ""),
    )


def add_device(group: argparse._ActionsContainer) -> None:
    """Adds --device."""
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")


def chosen_device(text: str) -> torch.device:
    """The device that --device names.

    Raises:
        InputError: no such device here.
    """
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


def existing_file(text: str) -> Path:
    """An argparse type: the path of a file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file")
    return path


def run_command(work: Callable[[], None]) -> int:
    """Runs a command and gives its exit code; what a user can mend is printed without a traceback.

    Under several processes a fault ends all of them, and is printed by the one that it is of.
    """
    try:
        with second_signal_ends(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            work()
    except InputError as fault:
        return leave(f"error: {fault}", EXIT_BAD_INPUT, may_follow=False)
    except KeyboardInterrupt:
        return leave("interrupted", EXIT_INTERRUPTED, may_follow=False)
    except Exception:
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
    """A warning of ours as a sentence, any other one as Python shows it."""
    text = f"warning: {message}\n"
    if issubclass(category, InputWarning):
        if not is_first():
            return
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside each flag, and descriptions with their own line breaks."""
