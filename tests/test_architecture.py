"""The house holds: imports run one way, libraries stay in their rooms, files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE = 600
LONGEST_FUNCTION = 60

# From the left of ARCHITECTURE's arrow to its right; an import may only go to a higher number, or stay.
FLOORS = [
    {"main", "convert", "inference", "validation_mixed", "validation_hq", "validation_lq"},
    {"validation", "recognition"},
    {"command"},
    {"backbone_evaluation", "training_run", "training_flags", "feature_run", "run_parts", "label_run"},
    {"run_folder"},
    {"settings", "settings_checks", "train_val", "embedding", "feature_cache"}
    | {"quality_check", "quality_choice", "export"},
    {"data", "evaluation", "weights"},
    {"net", "head", "coreset", "contrast", "recipe", "virtual_subjects", "distributed_run"},
    {
        "array_files",
        "json_files",
        "backbone_spec",
        "cosine_statistics",
        "distributed_ops",
        "errors",
        "face_template",
        "escaping",
        "files",
        "machine",
        "matmul_precision",
        "process_faults",
        "progress",
    },
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# `command` lends its flags to commands alone, and takes the names of its choices from the registries.
LIGHTNING = {"main", "train_val", "embedding", "distributed_run", "run_folder", "data.datamodule"}
VALIDATION = ("validation_mixed", "validation_hq", "validation_lq")


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in FLOOR:
            yield ".".join(parts).removesuffix(".__init__"), path


MODULES = dict(modules())


def imports_of(path: Path, *, type_checking: bool = False) -> set[str]:
    """Names of the modules that a file imports; those for type checkers alone only when asked."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not type_checking:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def test_every_module_of_ours_has_a_room() -> None:
    known = set(FLOOR) | {"tests", "benchmarks"}
    strangers = {
        path.relative_to(ROOT).with_suffix("").parts[0]
        for path in ROOT.rglob("*.py")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    }
    assert strangers - known - {"experiments", "demo"} == set()


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    here = name.split(".")[0]
    back = {
        target
        for target in imports_of(MODULES[name], type_checking=True)
        if FLOOR.get(target.split(".")[0], len(FLOORS)) < FLOOR[here]
    }
    assert back == set()


@pytest.mark.parametrize("name", MODULES)
def test_commands_do_not_import_each_other(name: str) -> None:
    here = name.split(".")[0]
    if here not in FLOORS[0]:
        return
    others = {t for t in imports_of(MODULES[name]) if t.split(".")[0] in FLOORS[0] - {here}}
    assert others == set()


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_in_their_rooms(name: str) -> None:
    tops = {target.split(".")[0] for target in imports_of(MODULES[name])}
    room = name.split(".")[0]
    if name not in LIGHTNING and room not in VALIDATION:
        assert not tops & {"pytorch_lightning", "lightning"}
    if room not in ("data", "inference"):
        assert "cv2" not in tops
    ours = tops & set(FLOOR)
    if room in ("coreset", "net", "head"):
        assert ours <= {room, "backbone_spec", "distributed_ops", "errors", "files", "matmul_precision"}
        assert tops & {"pandas", "sklearn", "matplotlib", "cv2"} == set()
    if room in ("errors", "files", "json_files", "array_files"):
        assert ours <= {"errors", "files", "json_files", "array_files"}
        assert "torch" not in tops
    if name == "evaluation.metrics":
        assert "torch" not in tops
        assert ours <= {"errors", "files", "evaluation"}
    if name == "data.recordio":
        assert ours <= {"errors", "files"}
        assert not tops & {"torch", "cv2", "pandas"}


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_short(name: str) -> None:
    text = MODULES[name].read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or 0) - node.lineno + 1
            lines -= documented.count("\n") + 1 if documented else 0
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"


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
