"""Protocols of set benchmarks: templates, media, pairs and stress, from presets or files.

A protocol file is JSON or TOML with fields of `BenchmarkProtocol`; missing fields have the values of the
preset `stills`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from data.sampling.degradations import Degradation
from runtime.errors import InputError
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
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_BYTES).decode("utf-8-sig")
        values = _toml(text)
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(f"{path}: cannot be read as TOML ({fault}). Expected {what}.") from None
    return values


def _toml(text: str) -> Any:
    if sys.version_info < (3, 11):
        raise InputError("protocols in TOML need Python 3.11; write it as JSON.")
    # Imported by name, because mypy checks against Python 3.10.
    return import_module("tomllib").loads(text)


def _protocol(values: dict[str, Any], where: str) -> BenchmarkProtocol:
    faults: list[str] = []
    stress = values.pop("stress", {})
    if not isinstance(stress, dict):
        raise InputError(f"{where}: stress is {stress!r}; expected an object.")
    own = _checked(values, BenchmarkProtocol, _OWN_RULES, where, faults)
    of_stress = _checked(stress, Stress, _STRESS_RULES, f"{where}, stress", faults)
    if faults:
        raise InputError.from_faults(faults)
    return replace(BenchmarkProtocol(), **own, stress=Stress(**of_stress))


_Rule = Callable[[Any], Any]


def _range(least: float, most: float, kind: type[int] | type[float] = int) -> tuple[_Rule, str]:
    def rule(value: Any) -> Any:
        low, high = value
        if not least <= kind(low) <= kind(high) <= most or kind(low) != low or kind(high) != high:
            raise ValueError
        return kind(low), kind(high)

    return (
        rule,
        f"two {'integers' if kind is int else 'numbers'} from {least:g} to {most:g}, ascending",
    )


def _number(least: float, most: float, kind: type[int] | type[float]) -> tuple[_Rule, str]:
    def rule(value: Any) -> Any:
        if isinstance(value, (bool, str)) or kind(value) != value or not least <= value <= most:
            raise ValueError
        return kind(value)

    return rule, f"{'an integer' if kind is int else 'a number'} from {least:g} to {most:g}"


def _one_of(names: tuple[str, ...]) -> tuple[_Rule, str]:
    def rule(value: Any) -> Any:
        if value not in names:
            raise ValueError
        return value

    return rule, " or ".join(names)


def _causes(value: Any) -> tuple[str, ...]:
    if not value or isinstance(value, str) or set(value) - set(CAUSES):
        raise ValueError
    return tuple(cause for cause in CAUSES if cause in value)


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or any(int(size) != size or not 1 <= size <= _MAX_COUNT for size in value):
        raise ValueError
    return tuple(int(size) for size in value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


_SHARE = _number(0, 1, float)
_OWN_RULES: dict[str, tuple[_Rule, str]] = {
    "name": (_name, "a string"),
    "subjects": _number(0, _MAX_COUNT * 100, int),
    "templates": _range(2, _MAX_COUNT),
    "gallery_media": _range(1, _MAX_COUNT),
    "probe_media": _range(1, _MAX_COUNT),
    "gallery_kind": _one_of(GALLERY_KINDS),
    "clip_frames": _range(1, _MAX_COUNT),
    "fps": _number(0.01, 1000, float),
    "pairs": _one_of(PAIR_KINDS),
    "nonmated_pairs": _number(0, 1e12, int),
}
_STRESS_RULES: dict[str, tuple[_Rule, str]] = {
    "degraded": _SHARE,
    "strength": _range(0, 1, float),
    "causes": (_causes, f"a list of {', '.join(CAUSES)}"),
    "simulated_clips": _SHARE,
    "foreign": _SHARE,
    "repeated": _SHARE,
    "repeats": _range(2, 1000),
    "template_sizes": (_sizes, "a list of numbers of faces"),
}


def _checked(
    values: Mapping[str, Any],
    kind: type[Any],
    rules: Mapping[str, tuple[_Rule, str]],
    where: str,
    faults: list[str],
) -> dict[str, Any]:
    found = {}
    known = [each.name for each in fields(kind) if each.name in rules]
    for name, value in values.items():
        if name not in rules:
            faults.append(f"{where}: '{name}' is not a field of a protocol; expected {', '.join(known)}.")
            continue
        rule, expected = rules[name]
        try:
            found[name] = rule(value)
        except (TypeError, ValueError, OverflowError):
            faults.append(f"{where}: {name} is {value!r}; expected {expected}.")
    return found


def with_causes(draw: Degradation, causes: tuple[str, ...]) -> Degradation:
    """The degradation restricted to some causes."""
    plain = Degradation()
    others = {name: getattr(plain, name) for cause in CAUSES if cause not in causes for name in CAUSES[cause]}
    return replace(draw, **others)
