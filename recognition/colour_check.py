"""Do the sets of a run say that the backbone wants red and blue the other way round?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data.checks.colour_order import FEWEST_PAIRS, GivenFaces, check_colour_order, wrong_order_advice
from data.sources.decoding import Image
from recognition.model import FaceModel, embed_images

_MOST_SETS, _EACH = 40, 2


@dataclass
class ColourSample:
    """Two faces of each of the first sets, kept while faces go by."""

    faces: dict[int, list[Image]] = field(default_factory=dict)

    def add(self, number: int, face: Image) -> None:
        """A face (112, 112, 3) RGB of set `number`; kept if it is needed."""
        if number not in self.faces and len(self.faces) >= _MOST_SETS:
            return
        kept = self.faces.setdefault(number, [])
        if len(kept) < _EACH:
            kept.append(face)

    def warning(self, model: FaceModel) -> str:
        """A sentence where mated faces are more alike with red and blue swapped; else nothing."""
        pairs = [faces for faces in self.faces.values() if len(faces) == _EACH]
        if len(pairs) < FEWEST_PAIRS:
            return ""
        images = [face for faces in pairs for face in faces]
        labels = np.repeat(np.arange(len(pairs)), _EACH)
        report = check_colour_order(
            GivenFaces("the sets", labels, images.__getitem__),
            lambda faces: embed_images(model, faces)[0],
            model.spec,
            advice=wrong_order_advice(model.spec),
        )
        return report.sentence if report.verdict == "swapped" else ""
