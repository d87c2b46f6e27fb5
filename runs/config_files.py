"""Configuration files: `--config` reads YAML or the run.json of a run, `--print_config` writes YAML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, get_origin

import yaml

from runs.config import ACTIONS, GROUPS, TrainingConfig, config_fields, whole_numbers
from runtime.errors import InputError, did_you_mean
from runtime.input_files import check_regular
from runtime.json_files import DuplicateKeyError, check_type, read_json, unique_keys

_LARGEST = 1 << 20
_TEXT_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float")}
_INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("int", "float"))
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
    faults: list[str] = []
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name, place, value in (_run_json if path.suffix == ".json" else _yaml)(path):
        if (fault := _fault_of_key(name, places)) is not None:
            faults.append(f"{place}: {fault}")
            continue
        places[name] = place
        try:
            values[name] = _typed(value, name, place)
        except InputError as wrong:
            faults.append(str(wrong))
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


def _run_json(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Name, place and value of each flag in a run.json."""
    record, _ = read_json(path, _Record, "the run.json of a training run")
    for name, value in record["flags"].items():
        yield name, f"{path}, flags: {name}", value


def _fault_of_key(name: str, before: Any) -> str | None:
    if name in before:
        return "is given twice."
    if name in ACTIONS:
        return f"belongs on the command line (--{name})."
    if name in config_fields() or name == "use_16bit":
        return None
    hint = did_you_mean(name, config_fields(), cutoff=0.6)
    return f"unknown key. Keys are the flags of main.py without dashes.{hint}"


def _yaml(path: Path) -> Iterator[tuple[str, str, yaml.Node]]:
    """Key, place and value of each entry of a YAML file."""
    expected = f"{path}: expected a configuration (YAML): lines of KEY: VALUE"
    check_regular(path, "a configuration (YAML)")
    if not path.is_file():
        raise InputError(f"--config {path}: no such file. Expected YAML, or the run.json of a run.")
    with path.open("rb") as stream:
        text = stream.read(_LARGEST + 1)
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
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{expected}. Line {line}: the key is no text.")
        yield key.value, f"{path}, line {line}: {key.value}", value


def _typed(value: Any, name: str, place: str) -> Any:
    """A value of JSON or YAML as the type of a field; InputError if it has another."""
    kind = bool if name == "use_16bit" else config_fields()[name].kind
    # Which texts are accepted is checked with all other rules.
    kind = str if get_origin(kind) is Literal else kind
    if isinstance(value, yaml.Node):
        value = _plain(value, kind, place)
    check_type(value, kind, place)
    return value


def _plain(node: yaml.Node, kind: Any, place: str) -> Any:
    """The value of a node. A text or number is read as on the command line, if it is one for the type."""
    if isinstance(node, yaml.ScalarNode) and node.tag in _TEXT_TAGS:
        readers: dict[Any, Callable[[str], Any]] = {str: str, float: float, tuple: whole_numbers}
        read = next((readers[k] for k in (get_origin(kind), kind, *get_args(kind)) if k in readers), None)
        with suppress(ValueError):
            if read is not None:
                return read(node.value)
    try:
        return _Loader("").construct_document(node)
    except DuplicateKeyError as fault:
        raise InputError(f"{place}: {fault}.") from None
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ValueError):
        raise InputError(f"{place}: has values that contradict their YAML tags.") from None
