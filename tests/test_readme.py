"""What the README says can be run: its Python is executed, its commands are understood by their parsers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pytest

import convert
import inference
import main
from recognition.calibration.command import COMMANDS as CALIBRATION
from recognition.gallery.commands import COMMANDS as GALLERY
from validation import ijb as validate_ijb

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = {**GALLERY, **CALIBRATION}
PARSERS: dict[str, Callable[[], ArgumentParser]] = {
    "main.py": main.flags,
    "convert.py": convert.flags,
    "inference.py": inference.flags,
    "validation_mixed/validate_ijb.py": validate_ijb.PROTOCOL.flags,
    "validation_mixed/eval_ijb.sh": validate_ijb.PROTOCOL.flags,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(?:python )?([\w/]+\.py --[^`]+)`", README)
    return [words for line in [*lines, *inline] if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words: list[str]) -> None:
    words = words[1:] if words[0] in ("python", "bash", "cd") else words
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "inference.py" and words[1:] and words[1] in COMMANDS:
        parser = ArgumentParser()
        COMMANDS[words[1]].add_flags(parser)
        parser.parse_args(words[2:])
    elif words[0] in PARSERS and "--help" not in words:
        PARSERS[words[0]]().parse_args(words[1:])
    else:
        assert (ROOT / words[0]).exists() or words[0].startswith(("pip", "git"))


def test_pictures_pages_and_packages_exist() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
    table = README[README.index("## Layout") : README.index("## Licences")]
    for name in re.findall(r"`([\w./]+(?:\.py|/))`", table):
        assert (ROOT / name).exists(), name
