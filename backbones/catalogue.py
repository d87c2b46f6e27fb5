"""Names and specs of the built-in backbones, and names of the margin heads; importable without torch."""

from __future__ import annotations

from backbones.spec import BackboneSpec

HEAD_NAMES = ("adaface", "arcface", "cosface")

_ADAFACE = ("ir_18", "ir_34", "ir_50", "ir_101", "ir_152", "ir_200", "ir_se_50", "ir_tiny")
_INSIGHTFACE = (
    *("iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200", "iresnet_tiny"),
    *("mbf", "mbf_large"),
)


def _spec(name: str) -> BackboneSpec:
    """AdaFace ties the norm to quality and reads BGR; InsightFace's losses do not, and read RGB."""
    adaface = name in _ADAFACE
    size = 64 if name.endswith("_tiny") else 512
    return BackboneSpec(name, size, "BGR" if adaface else "RGB", 127.5, 127.5, norm_is_quality=adaface)


BACKBONES: dict[str, BackboneSpec] = {name: _spec(name) for name in (*_ADAFACE, *_INSIGHTFACE)} | {
    "mobilefacenet": BackboneSpec("mobilefacenet", 128, "RGB", 127.5, 128.0, norm_is_quality=True),
    # Alignment: where the landmarks of ArcFace's template lie in dlib's face chip (150 x 150, padding 0.25);
    # medians over 59 photos of LFW, aligned both ways.
    "dlib_resnet": BackboneSpec(
        "dlib_resnet",
        128,
        "RGB",
        (122.782, 117.001, 104.298),
        256.0,
        norm_is_quality=None,
        input_size=150,
        alignment=(47.74, 44.19, 102.55, 43.89, 75.32, 75.37, 52.8, 107.45, 98.19, 107.2),
    ),
}
