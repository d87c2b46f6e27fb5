"""Description of everything that is done to a face before its feature is stored or compared."""

from __future__ import annotations

from backbones import illumination
from backbones.spec import BackboneSpec, centre_digest

# Keys that `describe_preprocessing` always returns; they are stored in files.
PREPROCESSING_KEYS = (
    *("alignment", "image_size", "colour_order", "illumination_normalisation", "pixel_scale", "flip"),
    *("auxiliary_size", "precision"),
)


def describe_preprocessing(
    spec: BackboneSpec, *, alignment: str, flip: str, precision: str
) -> dict[str, str]:
    """Describe the preprocessing in words, for feature stores, result files and galleries alike.

    Args:
        spec: of the backbone.
        alignment: how faces were aligned to the input size.
        flip: how features of the horizontally flipped image are fused.
        precision: of the network, as Lightning names it.
    """
    return {
        "alignment": alignment,
        "image_size": str(spec.input_size),
        "colour_order": spec.channel_order,
        "illumination_normalisation": illumination.describe() if spec.normalises_illumination else "none",
        "pixel_scale": f"(value - {_digits(spec.mean)}) / {_digits(spec.std)}",
        "flip": flip,
        "auxiliary_size": str(spec.auxiliary_size),
        "precision": precision,
        # Present only where set, as in `BackboneSpec.to_dict`.
        **({} if spec.centre is None else {"centre": centre_digest(spec.centre)}),
        **({} if spec.alignment is None else {"template": " ".join(map(_digits, spec.alignment))}),
    }


def _digits(value: float | tuple[float, ...]) -> str:
    """All digits, since a small difference is one too; several values in brackets."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_digits, value))})"
    return repr(float(value)).removesuffix(".0")
