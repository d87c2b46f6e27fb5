"""Protocols of set benchmarks: templates, media, pairs and stress, from presets or files.

A protocol file is JSON or TOML with fields of `BenchmarkProtocol`; missing fields have the values of the
preset `stills`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from data.sampling.degradations import Degradation
from runtime.errors import InputError, valid_names
from runtime.json_files import read_json

Range = tuple[int, int]

GALLERY_KINDS = ("stills", "any")
PAIR_KINDS = ("gallery_probe", "all")
# Fields of `Degradation` by cause.
CAUSES = {
    "alignment": ("flipped", "rotation", "scale", "shift", "border"),
    "occlusion": ("crop", "occlusion", "occlusion_colour"),
    "light": ("gamma", "contrast", "brightness", "saturation", "tint"),
    "blur": ("defocus",),
    "motion": ("motion", "motion_angle"),
    "resolution": ("resolution", "interpolations"),
    "noise": ("noise", "shot_noise"),
    "compression": ("jpeg_quality", "jpeg_at_low_resolution"),
}
_MAX_COUNT = 100_000
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Stress:
    """Modifications of probe media; none by default. Galleries are not modified.

    `degraded`: fraction of degraded media, with `strength` (min, max) in [0, 1] and `causes`;
    `simulated_clips`: fraction of stills that become clips of `clip_frames` varied frames; `foreign`:
    fraction of impostor media, less than half of any template; `repeated`: fraction of media whose frames
    occur `repeats` (min, max) times; `template_sizes`: numbers of faces, assigned to templates in turn; empty
    means the number that their media give.
    """

    degraded: float = 0.0
    strength: tuple[float, float] = (0.1, 1.0)
    causes: tuple[str, ...] = tuple(CAUSES)
    simulated_clips: float = 0.0
    # Impostor faces; the name is a key of protocol files.
    foreign: float = 0.0
    repeated: float = 0.0
    repeats: Range = (2, 8)
    template_sizes: tuple[int, ...] = ()

    @property
    def needs_pixels(self) -> list[str]:
        """Options in use that change pixels."""
        used = {name: getattr(self, name) for name in ("degraded", "simulated_clips", "template_sizes")}
        return [name for name, value in used.items() if value]


@dataclass(frozen=True)
class BenchmarkProtocol:
    """A protocol; ranges are (min, max).

    `subjects`: maximum number, 0 for all; `templates`: per subject, including the gallery template;
    `gallery_media`, `probe_media`: media per template; `gallery_kind`: of `GALLERY_KINDS`; `clip_frames`:
    frames per clip, evenly spaced; `fps`: frames per second of a video; `pairs`: of `PAIR_KINDS`;
    `nonmated_pairs`: sample size, 0 for all (all mated pairs are kept).
    """

    name: str = "stills"
    subjects: int = 0
    templates: Range = (2, 4)
    gallery_media: Range = (1, 2)
    probe_media: Range = (1, 3)
    gallery_kind: str = "any"
    clip_frames: Range = (1, 1)
    fps: float = 2.0
    pairs: str = "gallery_probe"
    nonmated_pairs: int = 0
    stress: Stress = field(default_factory=Stress)

    @property
    def min_media(self) -> int:
        """Minimum number of media of a subject."""
        return self.gallery_media[0] + (self.templates[0] - 1) * self.probe_media[0]

    def to_dict(self) -> dict[str, Any]:
        """The fields in JSON types; of the stress only non-default values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        default = json.loads(json.dumps(asdict(Stress())))
        values["stress"] = {k: v for k, v in values["stress"].items() if v != default[k]}
        return values


PRESETS = {
    "stills": BenchmarkProtocol(),
    "mixed": BenchmarkProtocol(
        name="mixed", templates=(2, 5), probe_media=(1, 5), gallery_kind="stills", clip_frames=(4, 16)
    ),
    "stress": BenchmarkProtocol(
        name="stress",
        templates=(2, 5),
        probe_media=(1, 5),
        gallery_kind="stills",
        clip_frames=(4, 16),
        stress=Stress(degraded=0.7, simulated_clips=0.4, foreign=0.1, repeated=0.1),
    ),
}


def read_benchmark_protocol(text: str) -> BenchmarkProtocol:
    """The preset of this name, or the protocol of a .json or .toml file.

    Raises:
        InputError: neither a preset nor a file, or invalid values (all faults are listed).
    """
    if text in PRESETS:
        return PRESETS[text]
    path = Path(text)
    known = f"Expected {', '.join(PRESETS)}, or a .json or .toml protocol file."
    if not path.is_file():
        raise InputError(f"--protocol {text}: no such preset or file. {known}")
    if path.suffix not in (".json", ".toml"):
        raise InputError(f"--protocol {text}: {known}")
    values = _read(path)
    values.setdefault("name", path.stem)
    return _protocol(values, str(path))


def _read(path: Path) -> dict[str, Any]:
    what = 'a protocol, {"templates": [2, 4], ...}'
    if path.suffix == ".json":
        values: dict[str, Any] = read_json(path, dict[str, Any], what)[0]
        return values
    if sys.version_info < (3, 11):
        raise InputError("protocols in TOML need Python 3.11; write it as JSON.")
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_BYTES).decode("utf-8-sig")
        # Imported by name, because mypy checks against Python 3.10.
        values = import_module("tomllib").loads(text)
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(f"{path}: cannot be read as TOML ({fault}). Expected {what}.") from None
    return values


def _protocol(values: dict[str, Any], where: str) -> BenchmarkProtocol:
    faults: list[str] = []
    stress = values.pop("stress", {})
    if not isinstance(stress, dict):
        raise InputError(f"{where}: stress is {stress!r}; expected an object.")
    own = _checked(values, _OWN_RULES, where, faults)
    of_stress = _checked(stress, _STRESS_RULES, f"{where}, stress", faults)
    if faults:
        raise InputError.from_faults(faults)
    return replace(BenchmarkProtocol(), **own, stress=Stress(**of_stress))


@dataclass(frozen=True)
class _Rule:
    """What a field accepts: `expected` in words, and a function that converts a value or raises."""

    expected: str
    convert: Callable[[Any], Any]

    @classmethod
    def number(cls, least: float, most: float, kind: type[int] | type[float]) -> _Rule:
        """One number in a closed interval."""
        name = "an integer" if kind is int else "a number"
        return cls(f"{name} from {least:g} to {most:g}", lambda value: _number(value, least, most, kind))

    @classmethod
    def range(cls, least: float, most: float, kind: type[int] | type[float] = int) -> _Rule:
        """Two ascending numbers in a closed interval."""

        def convert(value: Any) -> Any:
            low, high = (_number(each, least, most, kind) for each in value)
            return _require(low <= high, (low, high))

        name = "integers" if kind is int else "numbers"
        return cls(f"two {name} from {least:g} to {most:g}, ascending", convert)

    @classmethod
    def one_of(cls, names: tuple[str, ...]) -> _Rule:
        """One of these names."""
        return cls(" or ".join(names), lambda value: _require(value in names, value))


def _require(condition: bool, value: Any) -> Any:
    if not condition:
        raise ValueError
    return value


def _number(value: Any, least: float, most: float, kind: type[int] | type[float]) -> Any:
    _require(not isinstance(value, (bool, str)) and kind(value) == value and least <= value <= most, value)
    return kind(value)


def _causes(value: Any) -> tuple[str, ...]:
    _require(bool(value) and not isinstance(value, str) and set(value) <= set(CAUSES), value)
    return tuple(cause for cause in CAUSES if cause in value)


_SHARE = _Rule.number(0, 1, float)
_OWN_RULES = {
    "name": _Rule("a string", lambda value: _require(isinstance(value, str) and value != "", value)),
    "subjects": _Rule.number(0, _MAX_COUNT * 100, int),
    "templates": _Rule.range(2, _MAX_COUNT),
    "gallery_media": _Rule.range(1, _MAX_COUNT),
    "probe_media": _Rule.range(1, _MAX_COUNT),
    "gallery_kind": _Rule.one_of(GALLERY_KINDS),
    "clip_frames": _Rule.range(1, _MAX_COUNT),
    "fps": _Rule.number(0.01, 1000, float),
    "pairs": _Rule.one_of(PAIR_KINDS),
    "nonmated_pairs": _Rule.number(0, 1e12, int),
}
_STRESS_RULES = {
    "degraded": _SHARE,
    "strength": _Rule.range(0, 1, float),
    "causes": _Rule(f"a list of {', '.join(CAUSES)}", _causes),
    "simulated_clips": _SHARE,
    "foreign": _SHARE,
    "repeated": _SHARE,
    "repeats": _Rule.range(2, 1000),
    "template_sizes": _Rule(
        "a list of numbers of faces", lambda sizes: tuple(_number(size, 1, _MAX_COUNT, int) for size in sizes)
    ),
}


def _checked(
    values: Mapping[str, Any], rules: Mapping[str, _Rule], where: str, faults: list[str]
) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if name not in rules:
            faults.append(f"{where}: '{name}' is not a field of a protocol. {valid_names(name, rules)}")
            continue
        try:
            found[name] = rules[name].convert(value)
        except (TypeError, ValueError, OverflowError):
            faults.append(f"{where}: {name} is {value!r}; expected {rules[name].expected}.")
    return found


def with_causes(draw: Degradation, causes: tuple[str, ...]) -> Degradation:
    """The degradation restricted to some causes."""
    plain = Degradation()
    others = {name: getattr(plain, name) for cause in CAUSES if cause not in causes for name in CAUSES[cause]}
    return replace(draw, **others)
