"""A set benchmark that is judged by: its protocol and the features of its faces, read together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from errors import InputError
from evaluation.given_features import read_features
from evaluation.ijb import Floats
from evaluation.protocols import SetProtocol, read_protocol
from evaluation.templates import FaceGroups, group_faces


@dataclass(frozen=True, eq=False)
class Judged:
    """`features` (N, D) unit rows and `norms` (N,) of the protocol's faces, in its order; its templates."""

    protocol: SetProtocol
    features: Floats
    norms: Floats
    groups: FaceGroups


def read_judged(data_root: Path, name: str, features: Path) -> Judged:
    """Reads both, without embedding anything; mirror images are in the features if they were made so.

    Raises:
        InputError: as `read_protocol` and `read_features`, or they do not belong together.
    """
    protocol = read_protocol(data_root, name)
    given = read_features(features, None)
    if len(given.norms) != len(protocol.image_names):
        raise InputError(
            f"{features}: features of {len(given.norms):,} images, and {name} has "
            f"{len(protocol.image_names):,}. They belong to another data set."
        )
    groups = group_faces(protocol.template_of_face, protocol.media, len(protocol.template_ids))
    return Judged(protocol, given.features, given.norms, groups)
