from __future__ import annotations

import re
from pathlib import Path

import pytest

from backbones.catalogue import BACKBONES
from evaluation.reporting.published import find_reference, published_names
from runtime.errors import InputError
from weights import resolve
from weights.catalogue import CATALOGUE, catalogue_text, fetched_path
from weights.sources import NOT_STATED, licence_of

MODELS = (
    *("18_casia", "18_vgg2", "18_webface4m", "50_casia", "50_ms1mv2", "50_webface4m"),
    *("101_ms1mv2", "101_ms1mv3", "101_webface4m", "101_webface12m"),
)


def test_catalogue_has_every_published_model() -> None:
    assert set(published_names()) <= set(CATALOGUE)
    assert {f"cvlface_adaface_ir{name}" for name in MODELS} <= set(CATALOGUE)
    assert "facecoresetnet_ir_101_webface4m" in CATALOGUE


def test_catalogue_figures_equal_the_published_rows() -> None:
    for name in published_names():
        for protocol, figure in (("IJBB", "IJB-B"), ("IJBC", "IJB-C"), ("pair_sets", "five sets")):
            if figure in CATALOGUE[name].figures:
                (rate,) = find_reference(name, protocol).figures.values()
                assert CATALOGUE[name].figures[figure] == pytest.approx(100 * rate)
        assert "five sets" in CATALOGUE[name].figures


def test_every_entry_states_source_and_terms() -> None:
    for entry in CATALOGUE.values():
        assert entry.architecture in BACKBONES
        assert entry.source.startswith(("hf://", "https://"))
        assert entry.page.startswith("https://")
        assert min(map(len, (entry.code_licence, entry.weights_licence, entry.data_terms))) > 2
        assert "not stated" in entry.commercial_use
        # Known for sure, or not said.
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert len({entry.source for entry in CATALOGUE.values()}) == len(CATALOGUE)


def test_the_text_shows_every_name_its_figures_and_terms() -> None:
    text = catalogue_text(CATALOGUE.values(), ["adaface_ir_50_ms1mv2"])
    row = next(line for line in text.splitlines() if line.startswith("adaface_ir_50_ms1mv2"))
    assert row.split() == ["adaface_ir_50_ms1mv2", "ir_50", "MS1MV2", "96.88", "94.82", "96.27", "yes"]
    for entry in CATALOGUE.values():
        assert entry.page in text
    assert "academic research only" in text
    assert max(map(len, text.splitlines())) <= 110


def test_missing_download_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"--fetch-weights adaface_ir_50_ms1mv2"):
        resolve("adaface_ir_50_ms1mv2")
    path = fetched_path(CATALOGUE["adaface_ir_50_ms1mv2"])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    assert resolve("adaface_ir_50_ms1mv2") == path


def test_misspelled_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"neither a file nor a name.*Did you mean 'adaface_ir_50_ms1mv2'\?"):
        resolve("adaface_ir50_ms1mv2")
    assert resolve("some/where/a.ckpt") == Path("some/where/a.ckpt")


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("adaface_ir_50_ms1mv2").write_bytes(b"")
    assert resolve("adaface_ir_50_ms1mv2") == Path("adaface_ir_50_ms1mv2")


def test_the_licence_is_that_of_the_catalogue_or_not_stated() -> None:
    assert licence_of("hf://minchul/cvlface_adaface_ir50_ms1mv2").startswith("MIT on the model card")
    assert licence_of("my.ckpt") == NOT_STATED
