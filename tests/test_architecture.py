"""The architecture: imports run in one direction, heavy libraries stay in the packages that need them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom; a module may import from its own package and from those that come later.
ORDER = [
    *("main", "convert", "inference", "validation_mixed", "validation_hq", "validation_lq"),
    *("runs", "recognition", "validation", "set_benchmark"),
    "train_val",
    *("training", "quality"),
    *("evaluation", "features", "weights"),
    *("synthetic", "photos", "data"),
    *("net", "head", "coreset"),
    "backbones",
    "runtime",
]
RANK = {package: number for number, package in enumerate(ORDER)}
# These may import everything, and no module of the product imports them.
OUTSIDE = {"tests", "benchmarks"}
COMMANDS = set(ORDER[:6])
# Libraries that only these packages or modules import; all others are open to every package.
LIBRARIES = {
    "pytorch_lightning": {
        *("main", "train_val", "training", "runs", "features.devices", "features.process_group"),
    },
    "cv2": {
        "data",
        "photos",
        "synthetic",
        "set_benchmark",
        "quality.choice",
        "training.loaders",
    },
    "pandas": {"evaluation.protocols", "runs.visualizer"},
    "matplotlib": {"evaluation.reporting", "quality.command", "runs.visualizer"},
}
# What packages may import of ours, where the order alone would allow more.
OWN = {
    "coreset": {"coreset", "backbones", "runtime"},
    "head": {"runtime", "backbones"},
    "net": {"backbones", "runtime"},
    "backbones": {"backbones", "runtime"},
    "runtime": {"runtime"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in RANK:
            yield ".".join(parts).removesuffix(".__init__"), path


MODULES = dict(modules())


def imports_of(path: Path) -> set[str]:
    """Names of the modules that a file imports, in functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(whole & set(MODULES))
            if not whole <= set(MODULES):
                found.add(node.module)
    return found


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def is_in(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_every_package_has_a_place_in_the_order() -> None:
    known = set(RANK) | OUTSIDE
    found = {
        path.relative_to(ROOT).with_suffix("").parts[0]
        for path in ROOT.rglob("*.py")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    }
    assert found - known - {"experiments", "demo"} == set()


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downwards(name: str) -> None:
    package = name.split(".")[0]
    ranks = RANK | dict.fromkeys(OUTSIDE, -1)
    upwards = {t for t in IMPORTS[name] if ranks.get(t.split(".")[0], len(ORDER)) < ranks[package]}
    assert upwards == set()


def test_no_circle_of_imports() -> None:
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for target in sorted(IMPORTS[name] & set(MODULES) - {name}):
            visit(target, [*trail, name])
        done.add(name)

    for name in MODULES:
        visit(name, [])


@pytest.mark.parametrize("name", MODULES)
def test_commands_do_not_import_each_other(name: str) -> None:
    package = name.split(".")[0]
    if package in COMMANDS:
        assert {t for t in IMPORTS[name] if t.split(".")[0] in COMMANDS - {package}} == set()


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_in_their_packages(name: str) -> None:
    tops = {target.split(".")[0] for target in IMPORTS[name]}
    for library in tops & set(LIBRARIES):
        assert is_in(name, LIBRARIES[library]), library
    package = name.split(".")[0]
    if package in OWN:
        assert tops & set(RANK) <= OWN[package]
    if name.startswith("evaluation.metrics"):
        assert "torch" not in tops
        assert {target for target in IMPORTS[name] if target.split(".")[0] in RANK} <= {
            other for other in MODULES if is_in(other, {"evaluation.metrics", "runtime"})
        }


# What a statement may not load, because it takes seconds.
HEAVY = {
    "import features.extract, features.cache, recognition.model, weights.converting": {"pytorch_lightning"},
    "import convert; convert.flags().format_help()": {"torch", "cv2", "scipy", "pandas", "sklearn"},
    "import weights, weights.catalogue, weights.overrides": {"torch", "cv2", "scipy", "pandas", "sklearn"},
}


@pytest.mark.parametrize("statement", HEAVY)
def test_heavy_libraries_are_loaded_only_where_needed(statement: str) -> None:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & HEAVY[statement] == set()


def test_nothing_is_printed_at_import() -> None:
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            printed = isinstance(node, ast.Expr) and "id='print'" in ast.dump(node)
            assert not printed, name


@pytest.mark.parametrize("name", MODULES)
def test_text_files_are_utf8_whatever_the_locale_says(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [value.value for value in node.args if isinstance(value, ast.Constant)]
        if called == "read_text":
            assert node.args, f"line {node.lineno}: read_text without an encoding"
        elif called == "write_text":
            assert len(node.args) > 1, f"line {node.lineno}: write_text without an encoding"
        elif called == "open" and isinstance(node.func, ast.Name):
            assert any("b" in str(mode) for mode in modes), f"line {node.lineno}: open without an encoding"
        elif called == "open" and not node.args:
            raise AssertionError(f"line {node.lineno}: open without an encoding")
