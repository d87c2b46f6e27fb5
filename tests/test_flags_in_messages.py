"""Every flag that a message names exists in the commands that can print it."""

from __future__ import annotations

import ast
import re
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

from tests.validation_commands import VALIDATION_COMMANDS

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "main.py": "main",
    "convert.py": "convert",
    "inference.py": "inference",
    **{Path(script).name: module for script, module in VALIDATION_COMMANDS.items()},
}
VALIDATIONS = tuple(command for command in COMMANDS.values() if command.startswith("validation."))
SETS = ("validation.youtube_faces", "validation.ijb_s")
WITH_SETS = ("inference", "validation.ijb", "validation.youtube_faces")
# Modules that more commands import than print their messages, or those with a flag, and those that do.
PRINTED_BY: dict[str | tuple[str, str], Sequence[str]] = {
    "backbones.base": ("main",),
    "runtime.command": ("inference",),
    "set_benchmark.media": ("convert",),
    "set_benchmark.protocol": ("convert",),
    "data.sampling.views": ("main",),
    "features.process_group": ("main", *VALIDATIONS),
    "features.flips": VALIDATIONS,
    "validation.frame": VALIDATIONS,
    ("validation.frame", "--aggregator"): SETS,
    ("validation.frame", "--aggregator_weights"): SETS,
    "weights.loading": ("convert",),
    ("weights.compatibility", "--quality"): ("main",),
    ("weights.compatibility", "--features"): ("validation.ijb",),
    ("weights.compatibility", "--weights"): ("validation.ijb",),
    # Where aggregators are loaded.
    "weights.aggregators": WITH_SETS,
    "weights.overrides": WITH_SETS,
}
# Flags of other programs, and a property of CSS.
FOREIGN = {"--save_embeddings", "--heat", "--always", "--abbrev", "--dirty", "--exclude"}
FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
# A command line within a message: up to the end of its sentence.
COMMAND_LINE = re.compile(rf"\b({'|'.join(map(re.escape, COMMANDS))})\b((?:(?!\. |; |: |, |\)|\n).)*)")


@cache
def messages(module: str) -> list[tuple[int, str]]:
    """(line, text) of each text of a module that is no docstring; `{}` where values are put in."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    # What defines flags names others of its own parser, and is no message.
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    defining = [node for node in calls if getattr(node.func, "attr", "") in ("add_argument", "add_parser")]
    inner |= {id(part) for node in defining for part in ast.walk(node)}
    inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in inner:
            found.append((node.lineno, "".join(map(_text, node.values))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append((node.lineno, node.value))
    return found


def _text(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "{}"


def path_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def reached(command: str) -> frozenset[str]:
    """Modules of ours that a command imports, at the top or in a function, directly or not."""
    found: set[str] = set()
    waiting = [command]
    while waiting:
        module = waiting.pop()
        if module in found or not path_of(module).is_file():
            continue
        found.add(module)
        for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return frozenset(found)


@cache
def flags_of(command: str) -> frozenset[str]:
    """Of the command and of its subcommands."""
    module = import_module(command)
    parsers = [(module.PROTOCOL if command.startswith("validation.") else module).flags()]
    if command == "inference":
        from recognition.calibration import command as calibrate_command
        from recognition.gallery import commands as gallery_commands

        for sub in (gallery_commands.COMMANDS | calibrate_command.COMMANDS).values():
            parsers.append(ArgumentParser())
            sub.add_flags(parsers[-1])
    return frozenset(_options(parsers))


def _options(parsers: list[ArgumentParser]) -> Iterator[str]:
    for parser in parsers:
        for action in parser._actions:
            yield from action.option_strings
            if isinstance(action, _SubParsersAction):
                yield from _options(list(action.choices.values()))


def test_every_flag_that_a_message_names_exists_in_the_command_that_prints_it() -> None:
    faults = []
    printing = {command: reached(command) for command in COMMANDS.values()}
    for module in sorted(frozenset().union(*printing.values())):
        commands = PRINTED_BY.get(module, [name for name, modules in printing.items() if module in modules])
        for line, text in messages(module):
            named = [
                (COMMANDS[match[1]], flag)
                for match in COMMAND_LINE.finditer(text)
                for flag in flags(match[2])
            ]
            for flag in flags(COMMAND_LINE.sub("", text)):
                named += [(command, flag) for command in PRINTED_BY.get((module, flag), commands)]
            faults += [
                f"{module}, line {line}: {command} has no {flag}"
                for command, flag in named
                if flag not in flags_of(command)
            ]
    assert not faults, "\n".join(faults)


def flags(text: str) -> set[str]:
    return set(FLAG.findall(text)) - FOREIGN


def test_messages_and_flags_are_found() -> None:
    """So that the test above does not pass for finding none."""
    assert "weights.layouts" in reached("convert")
    assert any("--aggregator_weights" in text for _, text in messages("weights.layouts"))
    assert flags("give --aligned, or --a_b-c; not a--b") == {"--aligned", "--a_b-c"}
    assert "--aligned" not in flags_of("convert")
    assert {"--fps", "--replace", "--weights"} <= flags_of("inference")
