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
    "mobilefacenet": BackboneSpec("mobilefacenet", 128, "RGB", 127.5, 128.0, norm_is_quality=True)
}
