"""The validation commands: path of each script, and the module whose PROTOCOL it runs."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _module_of(script: Path) -> str:
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and any(each.name == "PROTOCOL" for each in node.names):
            return str(node.module)
    raise AssertionError(f"{script} imports no PROTOCOL")


VALIDATION_COMMANDS = {
    str(script.relative_to(ROOT)): _module_of(script)
    for script in sorted(ROOT.glob("validation_*/validate_*.py"))
}
