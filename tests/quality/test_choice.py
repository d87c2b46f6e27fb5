"""Which quality is chosen, on backbones whose norm is known to be one or not; MobileFaceNet for real."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from convert import convert
from coreset.quality import FaceQuality
from net import BACKBONES, Backbone, build_backbone
from quality.check import NONE
from quality.choice import TooFewSubjectsError, curves_to_dict, laplacian_variance, recommend_quality
from quality.command import QualityCheckConfig
from recognition.model import load_model
from runtime.errors import InputError
from weights import Loaded, load_weights, save_weights
from weights.converting import convert_weights

NUM_SUBJECTS = 50


class Coarse(Backbone):
    """The direction is the coarse picture; the norm falls with what degradation leaves of it, or rises."""

    def __init__(self, sense: int) -> None:
        super().__init__(BACKBONES["ir_tiny"])
        self.scale = nn.Parameter(torch.ones(1))
        self.sense = sense

    def features(self, images: Tensor) -> Tensor:
        coarse = nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 14).flatten(1)
        direction = nn.functional.normalize(coarse - coarse.mean(dim=1, keepdim=True), dim=1)
        detail = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3)) + 0.01
        return direction * detail[:, None] ** self.sense * self.scale


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patterns of a person, with fine noise that is lost first."""
    root = tmp_path_factory.mktemp("people")
    for subject in range(NUM_SUBJECTS):
        (root / f"s{subject:02}").mkdir()
        pattern = np.random.default_rng(subject).integers(40, 210, (8, 8, 1))
        for number in range(3):
            rng = np.random.default_rng([subject, number])
            # Coarse enough that no image is a copy of another.
            own = (pattern + rng.integers(-50, 50, pattern.shape)).repeat(14, 0).repeat(14, 1)
            noise = rng.normal(0, 25, (112, 112, 3))
            image = (own + noise).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / f"s{subject:02}" / f"{number}.png"), image)
    return root


def test_measures_are_compared_on_degraded_faces(people: Path) -> None:
    found = recommend_quality(Coarse(1), people, num_images=150, replicates=30)
    assert set(found.curves.curves) == {"norm", "sharpness", "random"}
    assert found.name == (found.curves.choice or NONE)
    assert found.curves.mated == NUM_SUBJECTS * 3
    assert found.curves.fmr == 1e-2
    assert "detector (no --detector FILE)" in found.text
    assert "learned (the weights" in found.text
    other = recommend_quality(Coarse(-1), people, num_images=150, replicates=30)
    # The same faces, whose norms are ordered the other way.
    assert other.curves.curves["sharpness"].partial == found.curves.curves["sharpness"].partial
    assert other.curves.curves["norm"].partial != found.curves.curves["norm"].partial
    assert other.curves.choice != "norm" or found.curves.choice != "norm"


def test_copies_are_not_mated_pairs(people: Path, tmp_path: Path) -> None:
    root = tmp_path / "people"
    shutil.copytree(people, root, ignore=shutil.ignore_patterns(".face_index"))
    for folder in root.iterdir():
        shutil.copy(folder / "0.png", folder / "copy.png")
    found = recommend_quality(Coarse(1), root, num_images=4 * NUM_SUBJECTS, replicates=20)
    assert f"{NUM_SUBJECTS} images are near-duplicates" in found.text
    assert found.curves.mated == NUM_SUBJECTS * 3
    for path in [path for number in (1, 2) for path in root.glob(f"s*/{number}.png")]:
        path.unlink()
    with pytest.raises(TooFewSubjectsError, match="0 subjects"):
        recommend_quality(Coarse(1), root, num_images=4 * NUM_SUBJECTS, replicates=20)


def test_it_is_deterministic(people: Path) -> None:
    one, again = (recommend_quality(Coarse(1), people, num_images=100, replicates=20) for _ in range(2))
    assert one.text == again.text
    assert recommend_quality(Coarse(1), people, num_images=100, replicates=20, seed=1).text != one.text
    assert len(curves_to_dict(one, "w")["measures"]["norm"]["fnmr"]) == 96


def test_a_learned_quality_is_measured_too(people: Path) -> None:
    class Aggregator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quality = FaceQuality("learned", "coreset", 64)

    found = recommend_quality(Coarse(1), people, aggregator=Aggregator(), num_images=60, replicates=20)
    # An untrained head gives every face the same.
    assert found.curves.curves["learned"].fnmr == pytest.approx(found.curves.curves["random"].fnmr)


def test_laplacian_variance_falls_with_blur() -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    assert laplacian_variance(image) > 10 * laplacian_variance(cv2.GaussianBlur(image, (0, 0), 2))
    assert laplacian_variance(np.full((112, 112, 3), 7, np.uint8)) == 0


def test_invalid_comparisons_are_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(TooFewSubjectsError, match=r"10 subjects with two images .* expected 15 or more"):
        recommend_quality(Coarse(1), people, num_images=30)
    with pytest.raises(InputError) as told:
        QualityCheckConfig(store=tmp_path / "w.pt", detector=tmp_path / "gone.onnx")
    assert "--store" in str(told.value)
    assert "--detector" in str(told.value)


@pytest.mark.plots
def test_command_writes_plot_figures_and_weights(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights, kept = tmp_path / "w.safetensors", tmp_path / "q.safetensors"
    save_weights(weights, build_backbone("ir_tiny").eval())
    given = {"check_quality": (str(weights), str(people)), "num_images": 60}
    convert(given | {"out": str(tmp_path / "out"), "store": str(kept)})
    said = capsys.readouterr().out
    assert "rank correlation of norm and degradation" in said
    assert "60 degraded faces" in said
    assert (tmp_path / "out" / "error_versus_reject.png").read_bytes()[1:4] == b"PNG"
    content = json.loads((tmp_path / "out" / "quality.json").read_text())
    with safe_open(kept, framework="pt") as stored:
        assert stored.metadata()["quality"] == content["choice"]
    assert load_weights(kept).backbone.spec.norm_is_quality == (content["choice"] == "norm")


def test_quality_is_kept_through_conversions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "w.safetensors", build_backbone("ir_tiny").eval())
    names = [str(tmp_path / f"{name}.safetensors") for name in "wabc"]
    assert "quality of a face not measured" in convert_weights(names[0], Path(names[1]))
    convert_weights(names[0], Path(names[1]), quality="none")
    assert "its norm is not a measure" in convert_weights(names[1], Path(names[2]))
    assert not load_weights(Path(names[2])).backbone.spec.norm_is_quality
    assert "its norm is a measure" in convert_weights(names[2], Path(names[3]), quality="norm")
    assert load_weights(Path(names[3])).backbone.spec.norm_is_quality


def test_folder_without_pairs_is_refused_only_with_an_output_folder(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    save_weights(weights, build_backbone("ir_tiny").eval())
    for subject in range(20):
        (tmp_path / "few" / str(subject)).mkdir(parents=True)
        image = (people / f"s{subject:02}" / "0.png").read_bytes()
        (tmp_path / "few" / str(subject) / "0.png").write_bytes(image)
    given = {"check_quality": (str(weights), str(tmp_path / "few"))}
    convert(given)
    assert "0 subjects with two images or more" in capsys.readouterr().out
    with pytest.raises(InputError, match="0 subjects with two images or more"):
        convert(given | {"out": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


def test_single_recommendation_is_printed_and_stored(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a norm that is none and sharpness that would help: what is stored is what poolings use."""
    torch.manual_seed(0)
    weights, kept = tmp_path / "w.safetensors", tmp_path / "q.safetensors"
    save_weights(weights, build_backbone("ir_tiny").eval())
    with monkeypatch.context() as patch:
        patch.setattr("quality.command.load_weights", lambda *_, **__: Loaded(Coarse(-1), "coarse"))
        convert({"check_quality": (str(weights), str(people)), "num_images": 150, "store": str(kept)})
    said = capsys.readouterr().out
    assert said.count("Recommended: --quality") == 1
    assert "--quality learned" in said
    with safe_open(kept, framework="pt") as stored:
        assert stored.metadata()["quality"] == "none"
    spec = load_weights(kept).backbone.spec
    assert spec.norm_is_quality is False
    assert spec.cosine_statistics is not None
    assert spec.cosine_statistics.num_subjects == NUM_SUBJECTS
    assert load_model(kept, device="cpu").aggregator_name == "mean"


def test_faces_of_unknown_subjects_are_measured(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights, kept, loose = tmp_path / "w.safetensors", tmp_path / "q.safetensors", tmp_path / "loose"
    save_weights(weights, build_backbone("ir_tiny").eval())
    loose.mkdir()
    for subject in range(NUM_SUBJECTS):
        shutil.copy(people / f"s{subject:02}" / "0.png", loose / f"{subject}.png")
    convert({"check_quality": (str(weights), str(loose)), "store": str(kept)})
    spec = load_weights(kept).backbone.spec
    assert spec.cosine_statistics is not None
    assert (spec.cosine_statistics.num_faces, spec.cosine_statistics.num_subjects) == (NUM_SUBJECTS, None)
    assert spec.cosine_statistics.mated_mean is None
    # Fresh weights: all faces are alike until the vector that they share is gone.
    assert spec.centre is not None
    assert abs(spec.cosine_statistics.nonmated_mean) < 0.2
    assert "unknown" in capsys.readouterr().out


@pytest.mark.slow
def test_the_norm_of_mobilefacenet_helps(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "faces" / "lfw_dev112.tar") as archive:
        archive.extractall(tmp_path, members=archive.getmembers()[:1500], filter="data")
    root = next(path.parent.parent for path in tmp_path.rglob("*.jpg"))
    backbone = load_weights(shared / "faces" / "mobilefacenet.safetensors").backbone
    found = recommend_quality(
        backbone, root, detector=shared / "faces" / "face_detection_yunet_2023mar.onnx", num_images=300
    )
    norm, random = found.curves.curves["norm"], found.curves.curves["random"]
    assert norm.against_random[1] < 0
    assert norm.partial < random.partial
    assert found.name in ("norm", "detector")
