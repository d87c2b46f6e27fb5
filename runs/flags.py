"""The flags of main.py, made from the groups of the configuration. Importable without torch."""

from __future__ import annotations

import json
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from typing import Any, get_origin

from coreset.catalogue import describe_aggregators
from runs.config import GROUPS, ConfigField, config_fields, shown, whole_numbers
from runtime.command import build_parser
from runtime.json_files import DuplicateKeyError, unique_keys


def training_flags(description: str | None) -> ArgumentParser:
    """The parser of main.py; flags that are not given are absent from the namespace."""
    parser = build_parser(description)
    parser.argument_default = SUPPRESS
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for each in config_fields().values():
        groups[each.group].add_argument(f"--{each.name}", **_argument(each))
    aggregator, run = groups["aggregator"], groups["run"]
    aggregator.add_argument(
        "--list_aggregators",
        action="version",
        version=describe_aggregators(),
        help="list all aggregators and exit",
    )
    run.add_argument("--use_16bit", action="store_true", help="the same as --precision 16-mixed")
    run.add_argument(
        "--config",
        metavar="FILE",
        help="read values from a YAML file whose keys are flags, or from the run.json of a run; flags "
        "override them",
    )
    run.add_argument(
        "--print_config", action="store_true", help="print the resolved configuration as YAML and exit"
    )
    run.add_argument("--resume_from_checkpoint", metavar="CKPT", help="continue this run")
    run.add_argument(
        "--evaluate",
        action="store_true",
        help="validate only: the run of --resume_from_checkpoint, else "
        "the backbone of --start_from_model_statedict on the pair sets of --val_data_path",
    )
    run.add_argument(
        "--dry_run",
        action="store_true",
        help="describe the run, list mislabelled images, split identities and duplicates in "
        "<out>/label_check, and exit",
    )
    return parser


def _argument(each: ConfigField) -> dict[str, Any]:
    """The keywords of `add_argument` for a field."""
    text = each.option
    details: dict[str, Any] = {"help": text.help + _default(each)}
    if each.base is bool:
        return details | {"action": "store_true"}
    if each.choices:
        details["choices"] = each.choices
    if text.metavar is not None:
        details["metavar"] = text.metavar
    if text.without_value is not None:
        details |= {"nargs": "?", "const": text.without_value}
    if get_origin(each.base) is tuple:
        return details | {"type": _whole_numbers}
    if get_origin(each.base) is not None and not each.choices:
        return details | {"nargs": "+", "type": _name_and_value, "action": _Options}
    return details | ({"type": each.base} if each.base in (int, float) else {})


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return whole_numbers(text)
    except ValueError:
        raise ArgumentTypeError(f"expected whole numbers separated by commas, found {text!r}") from None


def _default(each: ConfigField) -> str:
    if each.name == "stage" or (each.default is None and each.option.stage_defaults is None):
        return ""
    if each.option.stage_defaults is None:
        return "" if each.base is bool else f" (default: {each.default})"
    backbone, coreset = map(shown, each.option.stage_defaults)
    return f" (default: {backbone}" + (f", coreset stage {coreset})" if coreset != backbone else ")")


def _name_and_value(text: str) -> tuple[str, Any]:
    name, given, value = text.partition("=")
    if not name or not given:
        raise ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


class _Options(Action):
    """Gathers NAME=VALUE of all occurrences of a flag in a dictionary."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, {})
        try:
            setattr(namespace, self.dest, unique_keys([*before.items(), *values]))
        except DuplicateKeyError as fault:
            raise ArgumentError(self, str(fault)) from None
