from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import coreset
from coreset import AGGREGATORS
from coreset.catalogue import (
    AGGREGATOR_NAMES,
    MAIN_AGGREGATORS,
    describe_aggregators,
    requires_training,
)


def test_entries_match_the_registry() -> None:
    assert list(AGGREGATORS) == list(AGGREGATOR_NAMES)
    for name, kind in AGGREGATORS.items():
        assert requires_training(name) == ("embedding_size" in inspect.signature(kind).parameters), name
    assert set(MAIN_AGGREGATORS) <= set(AGGREGATORS)


def test_description_has_one_line_for_each_aggregator() -> None:
    lines = describe_aggregators().splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(AGGREGATORS)
    assert {line.split()[1] for line in lines} == {"trained", "pooling"}
    assert [line.split()[0] for line in lines if "arXiv 2308.14075" in line] == ["coreset"]


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="AGGREGATOR"):
        coreset.AGGREGATOR  # type: ignore[attr-defined]  # noqa: B018


def test_names_are_importable_without_torch() -> None:
    code = "import sys, coreset.catalogue, backbones.catalogue; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(coreset.__file__).parents[1])
