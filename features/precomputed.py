"""Read precomputed features: a store, InsightFace's npz, a published pickle, or plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coreset.sets import unit_and_norm
from features.flips import NO_FLIP, auxiliary_size_of, flip_choice, fuse_flips, fused_size
from features.store import MANIFEST, open_store
from runtime.array_files import map_npy, read_npz
from runtime.errors import InputError
from runtime.pickle_files import StoredArray, read_plain_pickle

_BLOCK_ROWS = 16_384
_SHOWN = 5
_PICKLES = (".pickle", ".pkl")

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class PrecomputedFeatures:
    """`features` (N, D) unit rows and `norms` (N,) of all faces, in the order of the protocol.

    `identity`: what they depend on, as far as it is known (`features.extract.identity_of`); `about`: further
    facts.
    """

    features: Floats
    norms: Floats
    identity: Mapping[str, str]
    about: Mapping[str, str]

    @property
    def auxiliary_size(self) -> int | None:
        """Number of auxiliary features at the end of each row; None where it is not known."""
        size = self.identity.get("auxiliary_size")
        return None if size is None else auxiliary_size_of(int(size), self.identity.get("flip", NO_FLIP))


def read_features(path: Path, flip: str | None) -> PrecomputedFeatures:
    """Read features in any of the supported formats.

    Args:
        path: the folder of a store; a folder with features.npy (N, D) and norms.npy (N,); or an npz with
            'embs' and 'embs_f', un-normalised features of the images and of their flips, as
            InsightFace's ijb_evals.py saves them; or the pickle that AdaFace's and FaceCoresetNet's
            evaluations keep (`IJBB-AdaFace-Backbone-Features.pickle`): a dictionary with 'img_feats' (N, D),
            unit rows, and 'norms'.
        flip: `features.flips.NO_FLIP` or a flip rule. The features of an npz are fused by it; a store must
            have been made with it. None: a store of any rule, an npz without flipped images.

    Raises:
        InputError: no such features, damaged ones, or ones that were made with another flip rule.
    """
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path, flip or NO_FLIP)
    if path.suffix in _PICKLES and path.is_file():
        return _from_pickle(path)
    if (path / MANIFEST).is_file():
        store = open_store(path, None)
        made = store.identity.get("flip")
        if flip is not None and made is not None and made != flip:
            asked, other = flip_choice(flip), flip_choice(made)
            raise InputError(
                f"{path}: these features were made with --flip {other}, not --flip {asked}. Pass --flip "
                f"{other}, or remove --features to make others."
            )
        return PrecomputedFeatures(store.features, store.norms, store.identity, store.about)
    if (path / "features.npy").is_file() and (path / "norms.npy").is_file():
        return _from_arrays(path)
    raise InputError(
        f"{path}: holds no features. Expected a folder that an earlier run wrote (<out>/features/...), one "
        "with features.npy and norms.npy, an npz with 'embs' and 'embs_f', or a pickle with 'img_feats' and "
        "'norms'."
    )


def _from_arrays(folder: Path) -> PrecomputedFeatures:
    features = map_npy(folder / "features.npy", "features (N, D)")
    norms = map_npy(folder / "norms.npy", "their norms (N,)").reshape(-1)
    return PrecomputedFeatures(*_checked(folder, features, norms), {}, {})


def _from_pickle(path: Path) -> PrecomputedFeatures:
    """Its third entry, 'faceness_scores', is also in the meta file."""
    held = read_plain_pickle(path, "a dictionary of features")
    # Python 2 wrote keys as byte strings.
    entries = {
        key.decode(errors="replace") if isinstance(key, bytes) else key: value
        for key, value in (held.items() if isinstance(held, dict) else ())
    }
    features, norms = (entries.get(name) for name in ("img_feats", "norms"))
    if not (isinstance(features, StoredArray) and isinstance(norms, StoredArray)):
        found = ", ".join(map(repr, list(entries)[:_SHOWN])) or f"a {type(held).__name__}"
        raise InputError(
            f"{path}: expected a dictionary with the arrays 'img_feats' and 'norms', found {found}."
        )
    # Native byte order, and writable.
    values = features.values.astype(features.values.dtype.newbyteorder("="))
    arrays = _checked(path, values, norms.values.reshape(-1))
    return PrecomputedFeatures(*arrays, {}, {"features": f"published pickle {path.name}"})


def _checked(path: Path, features: Floats, norms: Floats) -> tuple[Floats, NDArray[np.float32]]:
    """The same with float32 norms, if rows are unit features with one norm each."""
    if features.ndim != 2 or features.dtype.kind != "f" or norms.shape != features.shape[:1]:
        raise InputError(
            f"{path}: features {features.shape} {features.dtype} and norms {norms.shape}; expected (N, D) "
            "floating and (N,)."
        )
    sample = np.linalg.norm(features[:: max(1, len(features) // 1000)].astype(np.float32), axis=1)
    if not np.isfinite(norms).all() or not (np.abs(sample - 1) < 1e-2).all():
        raise InputError(f"{path}: expected features that are unit rows, and norms that are finite numbers.")
    return features, norms.astype(np.float32)


def _from_npz(path: Path, flip: str) -> PrecomputedFeatures:
    what = "an npz of InsightFace's ijb_evals.py --save_embeddings, with 'embs' and 'embs_f'"
    stored, _ = read_npz(path, what, needed=["embs"], if_there=[] if flip == NO_FLIP else ["embs_f"])
    features, flipped = stored["embs"], stored.get("embs_f")
    if features.ndim != 2 or features.dtype.kind != "f":
        raise InputError(f"{path}: embs {features.shape} {features.dtype}; expected (N, D) floating.")
    if flip != NO_FLIP and (flipped is None or flipped.shape != features.shape):
        raise InputError(
            f"{path}: --flip {flip} needs the features of the flipped images, 'embs_f' {features.shape}; "
            f"found {'none' if flipped is None else flipped.shape}. Pass --flip none."
        )
    return PrecomputedFeatures(
        *_fused(features, flipped, flip), {}, {"features": f"InsightFace's npz {path.name}"}
    )


def _fused(
    features: Floats, flipped: Floats | None, flip: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit features and norms, in parts and in place where possible: 1 GB each at the size of IJB-C."""
    width = fused_size(features.shape[1], flip)
    in_place = features.dtype == np.float32 and width == features.shape[1]
    found = features if in_place else np.empty((len(features), width), np.float32)
    norms = np.empty(len(features), np.float32)
    for start in range(0, len(features), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        unit, length = unit_and_norm(torch.from_numpy(features[part].astype(np.float32)))
        if flipped is not None:
            other, other_length = unit_and_norm(torch.from_numpy(flipped[part].astype(np.float32)))
            unit, length = fuse_flips(unit, other, length, other_length, flip)
        found[part], norms[part] = unit.numpy(), length.numpy()
    if not np.isfinite(norms).all():
        raise InputError(f"the feature of image {int(np.argmin(np.isfinite(norms)))} is not finite.")
    return found, norms
