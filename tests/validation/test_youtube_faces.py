"""YouTube Faces in its true layout, small: figures by hand, other frames found and aligned, faults told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.sources.decoding import decode_face
from evaluation.protocols.youtube_faces import read_video_pairs
from evaluation.reporting.report import read_result
from net import build_backbone
from photos import video_frames
from photos.video_frames import aligned_frame
from runtime.errors import InputError
from validation import youtube_faces as validate_ytf
from weights import save_weights

Draw = Callable[[int, int], bytes]
FOLDS, PER_FOLD = 5, 6

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    return tmp_path / "tiny.safetensors"


def pair_list() -> list[tuple[int, str, str, int]]:
    rng = np.random.default_rng(0)
    found = []
    for fold in range(1, FOLDS + 1):
        for number in range(PER_FOLD):
            subject = int(rng.integers(6))
            other = subject if number % 2 == 0 else (subject + 1 + int(rng.integers(5))) % 6
            first = f"Name_{subject}/{int(rng.integers(2))}"
            second = f"Name_{other}/{1 - int(first[-1])}"
            found.append((fold, first, second, int(subject == other)))
    return found


@pytest.fixture
def root(tmp_path: Path, drawn_face: Draw) -> Path:
    """Six people with two videos of 9 to 12 frames, whose numbers have no leading zeros."""
    folder = tmp_path / "YouTubeFaces"
    for subject in range(6):
        for video in range(2):
            place = folder / "aligned_images_DB" / f"Name_{subject}" / str(video)
            place.mkdir(parents=True)
            for frame in range(8, 17 + 2 * video):
                content = drawn_face(subject, 100 * video + frame)
                (place / f"aligned_detect_{video}.{frame}.png").write_bytes(content)
    lines = ["split number, pair number, first name, second name, is same"]
    lines += [f"{f}, {n}, {a}, {b}, {label}" for n, (f, a, b, label) in enumerate(pair_list(), 1)]
    (folder / "splits.txt").write_text("\n".join(lines) + "\n")
    return folder


def run(capsys: pytest.CaptureFixture[str], *given: object) -> tuple[int, str, str]:
    argv, sys.argv = sys.argv, ["validate_ytf.py", *map(str, given), "--num_workers", "0", "--gpus", "0"]
    try:
        code = validate_ytf.PROTOCOL.main()
    finally:
        sys.argv = argv
    said = capsys.readouterr()
    return code, said.out, said.err


def descriptor_by_hand(folder: Path) -> np.ndarray:
    """The mean of un-normalised features, one frame after another."""
    torch.manual_seed(1)
    backbone = build_backbone("ir_tiny").eval()
    rows = []
    for path in folder.iterdir():
        levels = decode_face(path.read_bytes(), "x").transpose(2, 0, 1)[::-1].copy()
        pixels = (torch.from_numpy(levels).float() - backbone.spec.mean) / backbone.spec.std
        with torch.no_grad():
            feature, norm = backbone(pixels[None])
        rows.append((feature * norm)[0].double().numpy())
    mean = np.mean(rows, axis=0)
    return mean / np.linalg.norm(mean)


def test_accuracy_and_rates_by_hand(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--weights", tiny, "--data_root", root, "--flip", "none", "--out", tmp_path / "out")
    code, said, _ = run(capsys, *given, "--aggregator", "norm_weighted", "mean", "--cache", tmp_path / "c")
    assert code == 0
    result = read_result(tmp_path / "out")
    pairs = pair_list()
    videos = {v: descriptor_by_hand(root / "aligned_images_DB" / v) for _, *both, _ in pairs for v in both}
    distances = np.array([((videos[a] - videos[b]) ** 2).sum() for _, a, b, _ in pairs])
    mated = np.array([label == 1 for *_, label in pairs])
    folds = np.array([fold for fold, *_ in pairs])
    accuracies = []
    for fold in range(1, FOLDS + 1):
        rights = [((distances < t / 100) == mated)[folds != fold].sum() for t in range(400)]
        best = int(np.argmax(rights)) / 100
        accuracies.append(((distances < best) == mated)[folds == fold].mean())
    assert result["accuracy"]["accuracy"] == pytest.approx(np.mean(accuracies))
    error = np.std(accuracies, ddof=1) / np.sqrt(FOLDS)
    assert result["accuracy"]["standard_error"] == pytest.approx(error)
    strict = np.mean(distances[mated] < distances[~mated].min())
    assert result["verification"]["tar_at_far"]["1e-03"]["strict"] == pytest.approx(strict)
    assert set(result["aggregators"]) == {"norm_weighted", "mean"}
    assert result["data"] == {
        "images": sum(1 for _ in root.rglob("*.png")),
        "templates": 12,
        "pairs": FOLDS * PER_FOLD,
        "genuine": int(mated.sum()),
    }
    row = next(line for line in said.splitlines() if line.startswith("| norm_weighted"))
    assert f"{100 * np.mean(accuracies):.2f}" in row
    assert f"{100 * error:.2f}" in row
    assert "30 pairs in 5 folds, the published splits are 5,000 in 10" in said
    _, _, progress = run(capsys, *given, "--cache", tmp_path / "c")
    assert "embedding" not in progress


def test_frames_are_in_the_order_of_their_numbers_and_evenly_taken(root: Path) -> None:
    pairs = read_video_pairs(root, None, 0)
    first = [str(pairs.frames.files.path(n).name) for n in np.flatnonzero(pairs.video_of_frame == 0)]
    assert first == [f"aligned_detect_0.{frame}.png" for frame in range(8, 17)]
    few = read_video_pairs(root, None, 3)
    first = [str(few.frames.files.path(n).name) for n in np.flatnonzero(few.video_of_frame == 0)]
    assert first == [f"aligned_detect_0.{frame}.png" for frame in (8, 12, 16)]
    assert np.bincount(few.video_of_frame).tolist() == [3] * 12


def test_the_corrected_list_has_its_label_last(root: Path, tmp_path: Path) -> None:
    plain = read_video_pairs(root, None, 1)
    lines = (root / "splits.txt").read_text().splitlines()
    corrected = [lines[0], *(line[:-1] + f"0, {line[-1]}" for line in lines[1:])]
    (tmp_path / "splits_corrected.txt").write_text("\n".join(corrected))
    again = read_video_pairs(root, tmp_path / "splits_corrected.txt", 1)
    np.testing.assert_array_equal(again.is_mated, plain.is_mated)
    np.testing.assert_array_equal(plain.is_mated, [label == 1 for *_, label in pair_list()])


def test_other_frames_are_found_or_cut_from_the_middle(
    root: Path, tiny: Path, tmp_path: Path, drawn_face: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = cv2.resize(cv2.imdecode(np.frombuffer(drawn_face(1, 1), np.uint8), 1), (112, 112))
    frame = cv2.copyMakeBorder(small, 56, 56, 56, 56, cv2.BORDER_CONSTANT, value=(0, 0, 255))
    encoded = cv2.imencode(".png", frame)[1].tobytes()
    with pytest.raises(InputError, match=r"f\.png: is 224 x 224 pixels"):
        aligned_frame(encoded, "f.png", None)

    class Blind:
        def detect(self, photo: np.ndarray, faces: str, *, is_upright: bool) -> list[object]:
            assert faces == "central"
            assert is_upright
            return []

    monkeypatch.setattr(video_frames, "_opened", lambda detector: Blind())
    got = aligned_frame(encoded, "f.png", Path("x"))
    np.testing.assert_array_equal(got, cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
    # A video whose frames are larger needs a detector, which is asked for before anything is embedded.
    for path in (root / "aligned_images_DB" / "Name_0" / "0").iterdir():
        path.write_bytes(encoded)
    protocol = validate_ytf.PROTOCOL
    args = protocol.arguments({"data_root": root, "detector": tmp_path / "absent.onnx"})
    with pytest.raises(InputError, match=r"--detector .*absent\.onnx"):
        protocol.read(args)


def test_faults_are_told_before_work(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(capsys, "--weights", tiny, "--data_root", tmp_path / "no", "--out", tmp_path / "o")
    assert code == 2
    assert "splits.txt: no such file" in said
    assert "no such folder" in said
    text = (root / "splits.txt").read_text()
    (root / "splits.txt").write_text(text.replace("Name_0/0", "Name_9/0"))
    with pytest.raises(InputError, match=r"1 of 1\d videos of splits.txt have no frames there: Name_9/0"):
        read_video_pairs(root, None, 0)
    (root / "splits.txt").write_text(text + "11, 1, Name_0/0, Name_1/0, 2\n11, 2, ../x, Name_1/0, 1\n")
    with pytest.raises(InputError) as fault:
        read_video_pairs(root, None, 0)
    assert "line 32: expected 'FOLD, PAIR" in str(fault.value)
    assert "line 33" in str(fault.value)
    (root / "splits.txt").write_text(text.splitlines()[0])
    with pytest.raises(InputError, match="0 pairs; expected mated and non-mated"):
        read_video_pairs(root, None, 0)
    (root / "splits.txt").write_text(text)
    code, _, said = run(
        capsys,
        "--weights",
        tiny,
        "--data_root",
        root,
        "--detector",
        tiny,
        "--frames",
        1,
        "--out",
        tmp_path / "o",
    )
    assert code == 2
    assert "--detector has no effect" in said
