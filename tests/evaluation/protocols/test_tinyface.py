"""TinyFace: lists in the published form, figures against a slow oracle, every fault by file and name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from data.sources.face_loader import Faces
from evaluation.protocols.face_files import FaceFiles
from evaluation.protocols.tinyface import (
    GALLERY_LIST,
    PROBE_LIST,
    TinyFace,
    TinyFaceFigures,
    read_tinyface,
    tinyface_figures,
)
from runtime.errors import InputError
from tests.lq_layout import TESTING, Draw, cells, slow_cmc, tinyface_by_hand, write_list, write_tinyface


@pytest.fixture
def root(tmp_path: Path, drawn_face: Draw) -> Path:
    return write_tinyface(tmp_path, drawn_face)


def embed(faces: Faces) -> np.ndarray:
    """A poor 'network': few of the levels of a drawn face's pattern, so that it errs at times."""
    levels = np.stack([faces.image(n)[8:40:16, 8::16, 0].ravel()[:4] for n in range(len(faces))]) - 128.0
    return levels / np.linalg.norm(levels, axis=1, keepdims=True)


def figures_of(protocol: TinyFace) -> TinyFaceFigures:
    return tinyface_figures(embed(protocol.faces), protocol)


def test_from_files_to_figures(root: Path) -> None:
    protocol = read_tinyface(root)
    assert (
        len(protocol.gallery_subjects),
        len(protocol.probe_subjects),
        protocol.num_distractors,
    ) == (16, 12, 20)
    figures = figures_of(protocol)

    def rows(paths: Sequence[Path]) -> np.ndarray:
        return embed(FaceFiles.of(root, [str(path.relative_to(root)) for path in paths]))

    expected = {str(rank): tinyface_by_hand(root, rows, rank) for rank in (1, 5, 20)}
    assert figures.cmc == pytest.approx(expected)
    assert 0.2 < figures.cmc["1"] < figures.cmc["5"] <= figures.cmc["20"]
    result = figures.to_result()
    assert result["data"] == {"images": 48, "probes": 12, "gallery": 16, "distractors": 20}
    assert result["figures"] == {f"rank {rank}": rate for rank, rate in figures.cmc.items()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.booleans())
def test_figures_equal_a_slow_twin(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    G, N, P = 12, 30, 15
    features = rng.normal(size=(G + N + P, 4))
    # Of halves all lengths and products are exact, so that equal scores are equal.
    features = np.sign(features) / 2 if ties else features / np.linalg.norm(features, axis=1, keepdims=True)
    gallery_ids = rng.integers(0, 8, G)
    probe_ids = rng.choice(gallery_ids, P)
    protocol = TinyFace(FaceFiles.of(Path(), map(str, range(G + N + P))), gallery_ids, probe_ids, N, ())
    ids = [*gallery_ids, *[-1] * N]
    expected = {str(r): slow_cmc(features[G + N :], features[: G + N], probe_ids, ids, r) for r in (1, 5, 20)}
    assert tinyface_figures(features, protocol).cmc == pytest.approx(expected)


def test_distractors_make_it_harder(root: Path) -> None:
    protocol = read_tinyface(root)
    features = embed(protocol.faces)
    alone = TinyFace(
        FaceFiles.of(root, ["x"] * 28), protocol.gallery_subjects, protocol.probe_subjects, 0, ()
    )
    with_them = tinyface_figures(features, protocol).cmc["1"]
    assert tinyface_figures(features[np.r_[:16, 36:48]], alone).cmc["1"] > with_them


@pytest.mark.parametrize("name", ["aligned_pad_0.1_pad_high", "tinyface_aligned_112", "elsewhere"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_aligned_copy_is_taken_before_the_crops(root: Path, name: str, suffix: str) -> None:
    plain = figures_of(read_tinyface(root))
    aligned = root / name
    for path in list((root / TESTING).rglob("*.jpg")):
        target = aligned / path.relative_to(root / TESTING).with_suffix(suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    protocol = read_tinyface(root, aligned if name == "elsewhere" else None)
    assert protocol.faces.root == aligned
    assert figures_of(protocol) == plain


def test_the_root_may_be_the_unpacked_folder(root: Path) -> None:
    for data_root in (root / "tinyface", root / TESTING):
        assert len(read_tinyface(data_root).faces) == 48


def test_other_sizes_than_published_are_told(root: Path) -> None:
    notes = " ".join(read_tinyface(root).notes)
    assert "Gallery_Distractor: 20 images, the published protocol has 153,428" in notes
    assert "named after" not in notes


def test_names_that_speak_of_another_subject_are_told(root: Path) -> None:
    path = root / TESTING / PROBE_LIST
    write_list(path, "probe", ["0_3.jpg", "1_3.jpg"], [0, 2])
    assert any("1 images are named after another subject" in n for n in read_tinyface(root).notes)


def fault(root: Path, images: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_tinyface(root, images)
    return str(caught.value)


def test_nothing_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    message = fault(tmp_path)
    assert f"{tmp_path / 'tinyface/Testing_Set'}, {tmp_path / 'Testing_Set'}" in message
    assert "qmul-tinyface" in message


def test_all_that_is_missing_is_told_at_once(root: Path) -> None:
    (root / TESTING / PROBE_LIST).unlink()
    (root / TESTING / "Gallery_Match" / "0_1.jpg").unlink()
    (root / TESTING / "Gallery_Match" / "3_2.jpg").unlink()
    for path in (root / TESTING / "Gallery_Distractor").iterdir():
        path.unlink()
    lines = fault(root).splitlines()
    assert len(lines) == 3
    assert any(f"{PROBE_LIST}: no such file" in line for line in lines)
    assert any("2 of 16 listed images are missing: " in line and "0_1" in line for line in lines)
    assert any("Gallery_Distractor: holds no images" in line for line in lines)


def test_a_missing_folder_of_images(root: Path) -> None:
    (root / TESTING / "Gallery_Distractor").rename(root / "gone")
    assert "Gallery_Distractor: no such folder" in fault(root)
    assert f"{root / 'nowhere' / 'Probe'}: no such folder" in fault(root, root / "nowhere")


def test_an_image_twice_is_told(root: Path) -> None:
    folder = root / TESTING / "Probe"
    (folder / "0_3.png").write_bytes((folder / "0_3.jpg").read_bytes())
    assert "'0_3.jpg' and '0_3.png' are both the image '0_3'" in fault(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"probe_ids": [[1.0]]}, "has no field 'probe_set', only: probe_ids"),
        ({"probe_set": cells(["0_3.jpg"])}, "has no field 'probe_ids'"),
        (
            {"probe_set": np.ones((2, 1)), "probe_ids": [[0], [1]]},
            "'probe_set' holds numbers, expected a cell",
        ),
        ({"probe_set": cells(["0_3.jpg"]), "probe_ids": [[0], [1]]}, "1 names and 2 ids"),
        ({"probe_set": cells(["0_3.jpg"]), "probe_ids": [[0.5]]}, "'probe_ids' is no array of whole numbers"),
        (
            {"probe_set": cells(["0_3.jpg"]), "probe_ids": [[np.nan]]},
            "'probe_ids' is no array of whole numbers",
        ),
        (
            {"probe_set": cells(["0_3.jpg"]), "probe_ids": [[-100]]},
            "'probe_ids' is no array of whole numbers",
        ),
        (
            {"probe_set": cells(["0_3.jpg"]), "probe_ids": cells(["0"])},
            "'probe_ids' is no array of whole numbers",
        ),
        (
            {"probe_set": cells(["0_3.jpg", "0_3.jpg"]), "probe_ids": [[0], [0]]},
            "1 names occur more than once: 0_3.jpg",
        ),
        (
            {"probe_set": cells(["0_3.jpg", "1_3.jpg"]), "probe_ids": [[0], [77]]},
            f"1 subjects are not in {GALLERY_LIST}: 77",
        ),
    ],
)
def test_a_broken_list_is_told_by_its_field(root: Path, content: dict[str, Any], message: str) -> None:
    savemat(root / TESTING / PROBE_LIST, content, appendmat=False)
    text = fault(root)
    assert PROBE_LIST in text
    assert message in text


def test_lists_of_row_vectors_whole_numbers_and_plain_strings_are_read(root: Path) -> None:
    plain = read_tinyface(root)
    path = root / TESTING / PROBE_LIST
    names = [Path(plain.faces.path(36 + n)).name for n in range(12)]
    savemat(path, {"probe_set": cells(names).T, "probe_ids": plain.probe_subjects.astype(np.uint16)})
    again = read_tinyface(root)
    assert again.probe_subjects.tolist() == plain.probe_subjects.tolist()
    assert again.faces.names.tolist() == plain.faces.names.tolist()
    savemat(path, {"probe_set": np.array(names), "probe_ids": plain.probe_subjects})
    assert read_tinyface(root).faces.names.tolist() == plain.faces.names.tolist()


def test_a_damaged_list_is_told(root: Path) -> None:
    path = root / TESTING / PROBE_LIST
    path.write_bytes(path.read_bytes()[:200])
    assert f"{path}: cannot be read as a MATLAB file" in fault(root)


def test_other_rows_than_images_are_refused(root: Path) -> None:
    protocol = read_tinyface(root)
    with pytest.raises(InputError, match=r"features \(47, 4\) of 48 images"):
        tinyface_figures(embed(protocol.faces)[:47], protocol)
    broken = embed(protocol.faces)
    broken[5] = np.nan
    with pytest.raises(InputError, match="not finite"):
        tinyface_figures(broken, protocol)
