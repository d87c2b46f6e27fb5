"""Check of a backbone's channel order on the sets of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data.checks.colour_order import MIN_PAIRS, GivenFaces, check_colour_order, wrong_order_advice
from data.sources.decoding import Image
from recognition.model import FaceModel, embed_images

_MAX_SETS, _FACES_PER_SET = 40, 2


@dataclass
class ColourSample:
    """Two faces of each of the first sets, collected while faces are read."""

    faces: dict[int, list[Image]] = field(default_factory=dict)

    def add(self, index: int, face: Image) -> None:
        """Keep a face (112, 112, 3) RGB of a set if the sample needs it."""
        if index not in self.faces and len(self.faces) >= _MAX_SETS:
            return
        kept = self.faces.setdefault(index, [])
        if len(kept) < _FACES_PER_SET:
            kept.append(face)

    def warning(self, model: FaceModel) -> str:
        """A sentence if mated faces are more similar with red and blue swapped; else empty."""
        pairs = [faces for faces in self.faces.values() if len(faces) == _FACES_PER_SET]
        if len(pairs) < MIN_PAIRS:
            return ""
        images = [face for faces in pairs for face in faces]
        labels = np.repeat(np.arange(len(pairs)), _FACES_PER_SET)
        report = check_colour_order(
            GivenFaces("the sets", labels, images.__getitem__),
            lambda faces: embed_images(model, faces)[0],
            model.spec,
            advice=wrong_order_advice(model.spec),
        )
        return report.sentence if report.verdict == "swapped" else ""
