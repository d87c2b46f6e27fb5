"""The level of white in images of more than 8 bits a channel, by their type and their range."""

from __future__ import annotations

import math

from runtime.errors import InputError

# Of 8, 10, 12, 14 and 16 bits: cameras write 10 to 14 bits into 16.
_LEVELS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
# Resampling overshoots by a few per cent.
_OVERSHOOT = 0.05
# Between this and 1 the whites of 0..1 and of 0..255 cannot be told apart.
_LEAST_OF_LEVELS = 16.0


def white_level(smallest: float, largest: float, *, is_float: bool) -> float:
    """The value that is white in an image with values from `smallest` to `largest`.

    Floating-point images are in 0..1, or hold the levels of integers. Integers are of the smallest depth of
    8, 10, 12, 14 or 16 bits that holds them.

    Raises:
        InputError: the range does not tell it: values that are not finite, negative, or beyond 16 bits.
    """
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise InputError("holds values that are not finite (NaN or infinity). Save it anew with 8 bits.")
    white = 1.0
    if not is_float or largest > 1 + _OVERSHOOT:
        white = next((level for level in _LEVELS if largest <= level), 0.0)
    is_negative = smallest < (-_OVERSHOOT * white if is_float else 0)
    is_between = is_float and white > 1 and largest < _LEAST_OF_LEVELS
    if not white or is_negative or is_between:
        raise InputError(
            f"holds values from {smallest:g} to {largest:g}, which do not tell what is white; expected 0 to "
            "1, or levels of 8 to 16 bits. Save it anew with 8 bits."
        )
    return white
