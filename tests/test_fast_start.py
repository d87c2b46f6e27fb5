"""Commands import heavy libraries only where they need them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recognition.gallery.contents import Gallery
from recognition.gallery.database import SUFFIX
from recognition.gallery.store import enroll
from tests.validation_commands import VALIDATION_COMMANDS

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("torch", "torchvision", "pytorch_lightning", "cv2", "PIL", "sklearn", "scipy", "pandas", "matplotlib"),
    *("onnxruntime", "faiss", "jinja2"),
}
# Command line: heavy libraries that it may import.
ALLOWED: dict[str, set[str]] = {
    "inference.py --help": set(),
    "inference.py list --help": set(),
    "inference.py list --gallery GALLERY": set(),
    "inference.py enroll --help": set(),
    "inference.py search --help": set(),
    "inference.py remove --gallery GALLERY anna": set(),
    "inference.py calibrate --help": set(),
    "convert.py --help": set(),
    "convert.py --list-weights": set(),
    "main.py --help": set(),
    **{f"{script} --help": set() for script in VALIDATION_COMMANDS},
}
# Runs a command and prints its exit code, the heavy libraries in memory, and its processor time.
PROBE = """
import json, runpy, sys, time
heavy, sys.argv = set(json.loads(sys.argv[1])), sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
    code = 0
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted(heavy & set(sys.modules)), time.process_time()]))
"""


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gallery") / f"people{SUFFIX}"
    descriptors = np.eye(2, 4, dtype=np.float32)
    subjects = ("anna", "berta")
    enroll(path, Gallery(subjects, descriptors, np.ones(2, np.float32), (("a.jpg",),) * 2, "f" * 64, {}))
    return path


@pytest.mark.parametrize("line", ALLOWED)
def test_command_imports_no_other_heavy_library(line: str, gallery: Path) -> None:
    arguments = [str(gallery) if word == "GALLERY" else word for word in line.split()]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(sorted(HEAVY)), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    code, imported, seconds = json.loads(done.stdout.splitlines()[-1])
    assert code in (0, None), done.stderr
    assert set(imported) <= ALLOWED[line]
    if not ALLOWED[line]:
        assert seconds < 1
