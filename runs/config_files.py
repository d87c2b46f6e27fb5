"""Configuration files: `--config` reads YAML or the run.json of a run, `--print_config` writes YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, get_args, get_origin

import yaml

from runs.config import GROUPS, TrainingConfig, config_fields
from runtime.errors import InputError, did_you_mean
from runtime.input_files import check_regular
from runtime.json_files import DuplicateKeyError, check_type, read_json, unique_keys

# Flags that say what a command does with a configuration, which a file does not.
_ACTIONS = ("config", "print_config", "resume_from_checkpoint", "evaluate", "dry_run", "list_aggregators")
_LARGEST = 1 << 20
_TEXT_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float")}
_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
# Numbers of YAML 1.2. Those of YAML 1.1, as PyYAML has them, make 8 of 010, 90 of 1:30, and a text of 1e-4.
_NUMBERS = {
    _INT: r"[-+]?[0-9]+$",
    _FLOAT: r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}


@dataclass(frozen=True)
class ConfigFile:
    """Values of a file by field name, and for messages the place of each in the file."""

    values: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Loads the numbers of YAML 1.2, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See the base class."""
        unique_keys((self.construct_object(key, deep=True), None) for key, _ in node.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """See the base class."""
        return int(node.value)


class _Dumper(yaml.SafeDumper):
    """Writes texts that `_Loader` would take for numbers in quotes."""


for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, text) for tag, text in known if tag not in _NUMBERS]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _text in _NUMBERS.items():
        _kind.add_implicit_resolver(_tag, re.compile(_text), list("-+.0123456789"))
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)


class _Record(TypedDict):
    flags: dict[str, Any]


def read_config(path: Path) -> ConfigFile:
    """Read a YAML file whose keys are flags of main.py, or the run.json of a run.

    Raises:
        InputError: the file cannot be read, or has unknown keys or values of the wrong type; all of them in
            one message, with line, key and expected type.
    """
    if path.suffix == ".json":
        return _from_run_json(path)
    check_regular(path, "a configuration (YAML)")
    if not path.is_file():
        raise InputError(f"--config {path}: no such file. Expected YAML, or the run.json of a run.")
    with path.open("rb") as stream:
        text = stream.read(_LARGEST + 1)
    faults: list[str] = []
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value in _entries(path, text):
        line = key.start_mark.line + 1
        name = str(key.value)
        place = f"{path}, line {line}: {name}"
        if (fault := _fault_of_key(name, values)) is not None:
            faults.append(f"{place}: {fault}")
            continue
        try:
            values[name] = _value(value, _kind_of(name))
        except ValueError as wrong:
            faults.append(f"{place}: {wrong}.")
        places[name] = place
    if faults:
        raise InputError.from_faults(faults)
    return ConfigFile(values, places)


def config_text(config: TrainingConfig) -> str:
    """The configuration as YAML, which `read_config` reads."""
    flat, parts = config.to_flat(), []
    for group in GROUPS:
        names = [name for name, each in config_fields().items() if each.group == group]
        entries = yaml.dump(
            {name: flat[name] for name in names}, Dumper=_Dumper, sort_keys=False, allow_unicode=True
        )
        parts.append(f"# {group}\n{entries}")
    return "\n".join(parts)


def _from_run_json(path: Path) -> ConfigFile:
    record, _ = read_json(path, _Record, "the run.json of a training run")
    values = record["flags"]
    places = {name: f"{path}, flags: {name}" for name in values}
    faults = []
    for name, value in values.items():
        if (fault := _fault_of_key(name, ())) is not None:
            faults.append(f"{places[name]}: {fault}")
            continue
        try:
            check_type(value, _kind_of(name), places[name])
        except InputError as wrong:
            faults.append(str(wrong))
    if faults:
        raise InputError.from_faults(faults)
    return ConfigFile(values, places)


def _kind_of(name: str) -> Any:
    kind = bool if name == "use_16bit" else config_fields()[name].kind
    # Which texts are accepted is checked with all other rules.
    return str if get_args(kind) and all(isinstance(each, str) for each in get_args(kind)) else kind


def _fault_of_key(name: str, before: Any) -> str | None:
    if name in before:
        return "is set twice."
    if name in _ACTIONS:
        return f"belongs on the command line (--{name})."
    if name in config_fields() or name == "use_16bit":
        return None
    hint = did_you_mean(name, config_fields(), cutoff=0.6)
    return f"unknown key. Keys are the flags of main.py without dashes.{hint}"


def _entries(path: Path, text: bytes) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values of the mapping that the file holds."""
    expected = f"{path}: expected a configuration (YAML): lines of KEY: VALUE"
    try:
        if len(text) > _LARGEST:
            raise InputError(f"{expected}, of {_LARGEST >> 20} MiB at most.")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            raise InputError(f"{expected}, without aliases (*NAME).")
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = "" if mark is None else f" Line {mark.line + 1}:"
        raise InputError(f"{expected}.{line} {getattr(fault, 'problem', None) or 'not YAML'}.") from None
    except RecursionError:
        raise InputError(f"{expected}; it is nested too deep.") from None
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{expected}.")
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{expected}. Line {key.start_mark.line + 1}: the key is no text.")
        yield key, value


def _value(node: yaml.Node, kind: Any) -> Any:
    """The value of a node as a type of the configuration; ValueError says what was expected."""
    kinds = get_args(kind) or (kind,)
    if get_origin(kind) is tuple:
        return _whole_numbers(node)
    if node.tag == _NULL and type(None) in kinds:
        return None
    if get_origin(kinds[0]) is not None and isinstance(node, yaml.MappingNode):
        return _mapping(node)
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    expected = names.get(kinds[0], "NAME: VALUE pairs") + (" or null" if type(None) in kinds else "")
    wrong = ValueError(f"expected {expected}, found {_shown(node)}")
    if not isinstance(node, yaml.ScalarNode):
        raise wrong
    if kinds[0] is str and node.tag in _TEXT_TAGS:
        return str(node.value)
    if (kinds[0], node.tag) in ((bool, _BOOL), (int, _INT)):
        # An explicit tag, such as !!bool, may precede any text.
        try:
            return _plain(node)
        except (KeyError, IndexError, ValueError):
            raise wrong from None
    if kinds[0] is float and node.tag in _TEXT_TAGS:
        try:
            return float(node.value)
        except ValueError:
            raise wrong from None
    raise wrong


def _whole_numbers(node: yaml.Node) -> tuple[int, ...]:
    """A list of whole numbers, or the same text as on the command line."""
    try:
        if isinstance(node, yaml.SequenceNode) and all(each.tag == _INT for each in node.value):
            return tuple(int(each.value) for each in node.value)
        if isinstance(node, yaml.ScalarNode) and node.tag in _TEXT_TAGS:
            return tuple(int(part) for part in node.value.split(",") if part)
    except ValueError:
        pass
    raise ValueError(f"expected a list of whole numbers, found {_shown(node)}")


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    try:
        found = _plain(node)
    except DuplicateKeyError:
        raise
    except (yaml.YAMLError, KeyError, IndexError, AttributeError, ValueError):
        raise ValueError(f"expected NAME: VALUE pairs, found {_shown(node)}") from None
    if not all(isinstance(name, str) for name in found):
        raise ValueError("expected names that are texts")
    return dict(found)


def _plain(node: yaml.Node) -> Any:
    return _Loader("").construct_document(node)


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value) if len(node.value) <= 40 else f"{node.value[:40]!r}..."
    return "a list" if isinstance(node, yaml.SequenceNode) else "an object"
