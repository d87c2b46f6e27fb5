"""hf:// sources from a local cache in the hub's own layout; the hub itself is never asked."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from net import build_backbone
from runtime.errors import InputError
from weights import load_aggregator, load_backbone, load_weights, resolve, source_name, weights_sha256

constants = pytest.importorskip("huggingface_hub.constants")

REVISION = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"


class Cache:
    """models--owner--name/{blobs,refs,snapshots}: files are links to blobs, large ones named by SHA-256."""

    def __init__(self, root: Path, repo: str) -> None:
        self.folder = root / f"models--{repo.replace('/', '--')}"
        self.refer("main", REVISION)

    def refer(self, name: str, revision: str) -> None:
        (self.folder / "refs").mkdir(parents=True, exist_ok=True)
        (self.folder / "refs" / name).write_text(revision)

    def add(self, file: str, content: bytes, *, revision: str = REVISION, large: bool = True) -> Path:
        blob = self.folder / "blobs" / (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        link = self.folder / "snapshots" / revision / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(Path(file).parts) + 1)) / "blobs" / blob.name)
        return blob


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Cache(tmp_path / "hub", "someone/cvlface_ir_tiny")


def saved(state: dict[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def net_state() -> dict[str, Tensor]:
    return {f"net.{key}": value for key, value in build_backbone("ir_tiny").state_dict().items()}


def cvlface_config(order: str) -> bytes:
    config = {"architectures": ["CVLFaceRecognitionModel"], "conf": {"color_space": order}}
    return json.dumps(config).encode()


def test_a_cvlface_repository_loads_from_the_cache(cache: Cache) -> None:
    content = saved(net_state())
    cache.add("pretrained_model/model.pt", content)
    cache.add("config.json", cvlface_config("BGR"), large=False)
    source = "hf://someone/cvlface_ir_tiny"
    loaded = load_weights(source)
    assert loaded.kind == "CVLFace IR"
    assert loaded.backbone.spec.channel_order == "BGR"
    assert weights_sha256(source) == hashlib.sha256(content).hexdigest()
    assert source_name(source) == source
    assert load_aggregator(source) is None


def test_a_file_and_a_revision_can_be_named(cache: Cache) -> None:
    cache.add("pretrained_model/model.pt", saved(net_state()))
    new = cache.add("other/weights.pth", saved(net_state()), revision=OTHER)
    cache.refer("v2", OTHER)
    for source in (f"@{OTHER}/other/weights.pth", "@v2/other/weights.pth"):
        assert resolve(f"hf://someone/cvlface_ir_tiny{source}").resolve() == new
        load_backbone(f"hf://someone/cvlface_ir_tiny{source}")
    with pytest.raises(InputError, match=r"weights\.pth is not in the hub's cache"):
        load_backbone("hf://someone/cvlface_ir_tiny/other/weights.pth")


def test_missing_file_without_network_names_the_command(cache: Cache) -> None:
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set.*hf download nobody/nothing"):
        load_backbone("hf://nobody/nothing")


def test_truncated_blob_is_detected(cache: Cache) -> None:
    blob = cache.add("pretrained_model/model.pt", saved(net_state()))
    load_backbone("hf://someone/cvlface_ir_tiny")
    blob.write_bytes(blob.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"SHA-256"):
        load_backbone("hf://someone/cvlface_ir_tiny")


@pytest.mark.parametrize("source", ["hf://", "hf://onlyowner", "hf://a/b@", "hf://a/b@/file", "hf://a b/c"])
def test_another_form_is_an_error(source: str, cache: Cache) -> None:
    with pytest.raises(InputError, match="expected hf://owner/repo"):
        resolve(source)


@pytest.mark.parametrize(
    "place",
    [
        *("a/..", "../a", "./.", "a/b.", "a/b..c", "a/.git", "a/b@..", "a/b@v..1", "a/b/../../x", "a/b//x"),
        *("a/b/..", "a/b/c/./x", "a/b/c\\..\\x", "a/b/\0", "a/b--c", f"a/{'b' * 97}", "é/b"),
    ],
)
def test_names_that_leave_the_repository_are_errors(place: str, cache: Cache) -> None:
    with pytest.raises(InputError, match="hf://"):
        resolve(f"hf://{place}")
