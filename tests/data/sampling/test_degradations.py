"""Degradations: each is what it says, in the order of image formation, with the documented ranges."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.sampling.degradations import Degradation, degrade, draw_degradation, next_frame

Array = np.ndarray
NEAREST, LINEAR, AREA = cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA
DEFAULTS = asdict(Degradation())


@pytest.fixture(scope="module")
def face() -> Array:
    coarse = np.random.default_rng(0).integers(40, 220, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def pixels() -> Array:
    return np.random.default_rng(1).integers(1, 256, (112, 112, 3), np.uint8)


def degraded(image: Array, seed: int = 0, **parameters: Any) -> Array:
    before = image.copy()
    result = degrade(image, Degradation(**parameters), np.random.default_rng(seed))
    assert (result.dtype, result.shape) == (np.uint8, image.shape)
    assert np.array_equal(image, before)
    return result


def largest_difference(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).max())


def test_default_degradation_is_the_identity(face: Array) -> None:
    assert np.array_equal(degraded(face), face)


# ---- geometry


def test_flip_is_horizontal_and_precedes_the_shift(pixels: Array) -> None:
    assert np.array_equal(degraded(pixels, flipped=True), pixels[:, ::-1])
    moved = degraded(pixels, flipped=True, shift=(5.0, 0.0))
    assert np.array_equal(moved[:, 5:], pixels[:, ::-1][:, :-5])


@pytest.mark.parametrize(
    ("border", "mode"),
    [(cv2.BORDER_CONSTANT, "constant"), (cv2.BORDER_REPLICATE, "edge"), (cv2.BORDER_REFLECT_101, "reflect")],
)
def test_shift_is_to_the_right_and_down_in_pixels_of_112(pixels: Array, border: int, mode: Any) -> None:
    padded = np.pad(pixels, ((2, 0), (3, 0), (0, 0)), mode=mode)
    assert np.array_equal(degraded(pixels, shift=(3.0, 2.0), border=border), padded[:112, :112])
    wide = pixels.repeat(2, axis=1)
    padded = np.pad(wide, ((2, 0), (6, 0), (0, 0)), mode=mode)
    assert np.array_equal(degraded(wide, shift=(3.0, 2.0), border=border), padded[:112, :224])


def test_rotation_is_counter_clockwise_about_the_centre(pixels: Array) -> None:
    assert np.array_equal(degraded(pixels, rotation=90.0), np.rot90(pixels))


def test_scale_and_rotation_interpolate_linearly_about_the_centre(face: Array) -> None:
    cos, sin = math.cos(math.radians(10)) / 1.25, math.sin(math.radians(10)) / 1.25
    # From a pixel (row, column) of the result to that of the image.
    matrix = np.array([[cos, sin], [-sin, cos]])
    centre = np.array([55.5, 55.5])
    expected = np.stack(
        [
            ndimage.affine_transform(
                face[..., channel].astype(float), matrix, offset=centre - matrix @ centre, order=1
            )
            for channel in range(3)
        ],
        axis=-1,
    )
    assert largest_difference(degraded(face, rotation=10.0, scale=1.25), expected) < 3


def test_crop_blackens_fractions_of_the_sides_in_their_order(pixels: Array) -> None:
    image = pixels[:, :60]
    expected = np.zeros_like(image)
    # top 0.1, bottom 0.2, left 0.3, right 0.05 of (112, 60)
    expected[11:90, 18:57] = image[11:90, 18:57]
    assert np.array_equal(degraded(image, crop=(0.1, 0.2, 0.3, 0.05)), expected)


def test_occlusion_is_a_rectangle_about_its_centre(pixels: Array) -> None:
    expected = pixels.copy()
    expected[40:60, 20:60] = (1, 2, 3)
    hidden = {"occlusion": (40.0, 50.0, 40.0, 20.0), "occlusion_colour": (1, 2, 3)}
    assert np.array_equal(degraded(pixels, **hidden), expected)
    wide = pixels.repeat(2, axis=1)
    expected = wide.copy()
    expected[40:60, 40:120] = (1, 2, 3)
    assert np.array_equal(degraded(wide, **hidden), expected)


@pytest.mark.parametrize(
    ("centre", "window"),
    [((0, 0), np.s_[:10, :20]), ((112, 112), np.s_[102:, 92:]), ((-50, 50), np.s_[:0, :0])],
)
def test_occlusion_ends_at_the_border(pixels: Array, centre: tuple[int, int], window: Any) -> None:
    expected = pixels.copy()
    expected[window] = 0
    hidden = degraded(pixels, occlusion=(*map(float, centre), 40.0, 20.0), occlusion_colour=(0, 0, 0))
    assert np.array_equal(hidden, expected)


def test_occlusion_without_a_colour_is_noise(pixels: Array) -> None:
    expected = pixels.copy()
    expected[40:60, 20:60] = np.random.default_rng(5).integers(0, 256, (20, 40, 3))
    assert np.array_equal(degraded(pixels, seed=5, occlusion=(40.0, 50.0, 40.0, 20.0)), expected)


# ---- illumination


@pytest.mark.parametrize(
    "parameters",
    [
        {"gamma": 2.0},
        {"gamma": 0.5, "contrast": 1.4},
        {"contrast": 0.6, "brightness": -20.0},
        {"brightness": 30.0, "tint": (1.1, 1.0, 0.8)},
    ],
)
def test_illumination_is_gamma_then_contrast_then_brightness_then_tint(
    pixels: Array, parameters: dict[str, Any]
) -> None:
    draw = Degradation(**parameters)
    expected = np.empty(pixels.shape)
    for channel in range(3):
        level = (pixels[..., channel] / 255.0) ** draw.gamma
        level = (level - 0.5) * draw.contrast + 0.5
        expected[..., channel] = (level * 255 + draw.brightness) * draw.tint[channel]
    assert largest_difference(degraded(pixels, **parameters), expected.clip(0, 255)) < 0.51


@pytest.mark.parametrize("saturation", [0.0, 0.4, 1.3])
def test_saturation_blends_with_the_grey_image(pixels: Array, saturation: float) -> None:
    grey = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]
    expected = (saturation * pixels + (1 - saturation) * grey).clip(0, 255)
    assert largest_difference(degraded(pixels, saturation=saturation), expected) < 1.1


# ---- blur


@pytest.mark.parametrize("sigma", [0.6, 1.5, 3.0])
def test_defocus_is_a_gaussian_blur(pixels: Array, sigma: float) -> None:
    expected = ndimage.gaussian_filter(pixels.astype(float), (sigma, sigma, 0), mode="mirror")
    assert largest_difference(degraded(pixels, defocus=sigma), expected) < 2


@pytest.mark.parametrize(
    ("angle", "direction"), [(0.0, (0, 1)), (45.0, (1, 1)), (90.0, (1, 0)), (135.0, (1, -1))]
)
def test_motion_blur_spreads_a_point_along_a_line(angle: float, direction: tuple[int, int]) -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    blurred = degraded(point, motion=8.0, motion_angle=angle)[..., 0]
    reach = round(4 / math.hypot(*direction))
    expected = [(20 + step * direction[0], 20 + step * direction[1]) for step in range(-reach, reach + 1)]
    assert sorted(map(tuple, np.argwhere(blurred).tolist())) == sorted(expected)
    assert int(blurred.sum()) == pytest.approx(255, abs=5)
    assert blurred.max() < 80


def test_motion_of_at_most_a_pixel_is_none(pixels: Array) -> None:
    assert np.array_equal(degraded(pixels, motion=1.0), pixels)
    assert not np.array_equal(degraded(pixels, motion=1.5), pixels)


# ---- sensor and file


def test_resolution_is_of_a_face_of_112_pixels(pixels: Array) -> None:
    for image in (pixels, pixels.repeat(2, axis=1)):
        height, width = image.shape[:2]
        means = image.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
        expected = means.repeat(2, axis=0).repeat(2, axis=1)
        assert (
            largest_difference(degraded(image, resolution=56.0, interpolations=(AREA, NEAREST)), expected) < 1
        )
    small = pixels[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(degraded(pixels, resolution=56.0, interpolations=(NEAREST, NEAREST)), small)
    enlarged = cv2.resize(pixels[::2, ::2], (112, 112), interpolation=LINEAR)
    assert np.array_equal(degraded(pixels, resolution=56.0, interpolations=(NEAREST, LINEAR)), enlarged)
    assert np.array_equal(degraded(pixels, resolution=112.0), pixels)


def test_noise_is_gaussian_with_a_part_that_grows_with_the_light(pixels: Array) -> None:
    normal = np.random.default_rng(3).standard_normal(pixels.shape, np.float32).astype(float)
    for noise, shot in [(8.0, 0.0), (0.0, 1.5), (4.0, 0.7)]:
        light = pixels.astype(float)
        expected = (light + (noise + shot * np.sqrt(light)) * normal).clip(0, 255)
        assert largest_difference(degraded(pixels, seed=3, noise=noise, shot_noise=shot), expected) < 0.51


def jpeg_of_pil(image: Array, quality: int) -> Array:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [5, 30, 90])
def test_jpeg_is_that_of_pil(face: Array, quality: int) -> None:
    coloured = face // 2 + np.uint8([110, 40, 0])
    error = degraded(coloured, jpeg_quality=quality).astype(float) - jpeg_of_pil(coloured, quality)
    # Other versions of libjpeg round differently. With channels in the wrong order this is above 1.
    assert np.abs(error).mean() < 0.5


def test_jpeg_compresses_before_or_after_the_enlargement(face: Array) -> None:
    small = cv2.resize(face, (28, 28), interpolation=AREA)
    low = {"resolution": 28.0, "interpolations": (AREA, LINEAR), "jpeg_quality": 20}
    before = cv2.resize(degraded(small, jpeg_quality=20), (112, 112), interpolation=LINEAR)
    after = degraded(cv2.resize(small, (112, 112), interpolation=LINEAR), jpeg_quality=20)
    assert np.array_equal(degraded(face, jpeg_at_low_resolution=True, **low), before)
    assert np.array_equal(degraded(face, jpeg_at_low_resolution=False, **low), after)
    assert not np.array_equal(before, after)


def test_noise_is_added_at_the_low_resolution(face: Array) -> None:
    low = {"resolution": 28.0, "interpolations": (AREA, LINEAR)}
    small = cv2.resize(face, (28, 28), interpolation=AREA)
    expected = cv2.resize(degraded(small, seed=2, noise=9.0), (112, 112), interpolation=LINEAR)
    assert np.array_equal(degraded(face, seed=2, noise=9.0, **low), expected)


# ---- all together


def test_degradations_follow_the_formation_of_an_image(face: Array) -> None:
    steps: list[dict[str, Any]] = [
        {
            "flipped": True,
            "rotation": 8.0,
            "scale": 1.1,
            "shift": (3.0, -4.0),
            "border": cv2.BORDER_REPLICATE,
        },
        {"crop": (0.1, 0.0, 0.0, 0.1), "occlusion": (40.0, 50.0, 40.0, 20.0)},
        {"gamma": 1.4, "contrast": 0.8, "brightness": 9.0, "tint": (1.1, 1.0, 0.9), "saturation": 0.6},
        {"defocus": 1.2},
        {"motion": 5.0, "motion_angle": 30.0},
        {"noise": 6.0, "shot_noise": 0.4},
        {"jpeg_quality": 40},
    ]
    rng, expected = np.random.default_rng(9), face
    for step in steps:
        expected = degrade(expected, Degradation(**step), rng)
    together = {name: value for step in steps for name, value in step.items()}
    assert np.array_equal(degraded(face, seed=9, **together), expected)


def test_realignment_reverses_most_of_rotation_and_shift(face: Array) -> None:
    moved = {"rotation": 15.0, "shift": (9.0, -6.0), "scale": 1.1}
    rng = np.random.default_rng(4)
    rotation = -15.0 * rng.uniform(0.7, 1.1) + rng.normal(0, 1.2)
    shift = tuple(-0.7 * np.array([9.0, -6.0]) + rng.normal(0, 0.8, 2))
    scale = math.exp(rng.normal(0, 0.015))
    expected = degraded(degraded(face, **moved), rotation=rotation, shift=shift, scale=scale)
    realigned = degraded(face, seed=4, realigned=True, **moved)
    assert np.array_equal(realigned, expected)
    inner = np.s_[30:82, 30:82]
    assert (
        np.abs(realigned[inner].astype(float) - face[inner]).mean()
        < 0.7 * np.abs(degraded(face, **moved)[inner].astype(float) - face[inner]).mean()
    )


def test_result_depends_on_the_generator_only(face: Array) -> None:
    for seed in range(20):
        draw = draw_degradation(np.random.default_rng(seed), 0.8)
        assert draw == draw_degradation(np.random.default_rng(seed), 0.8)
        results = [degrade(face, draw, np.random.default_rng(seed)) for _ in range(2)]
        assert np.array_equal(*results)


# ---- draws

# A cause, its weight on the rate, and the fields that it sets.
CAUSES = {
    "crop": (0.4, ["crop"]),
    "occlusion": (0.5, ["occlusion"]),
    "gamma": (1.3, ["gamma", "contrast", "brightness"]),
    "saturation": (0.5, ["saturation", "tint"]),
    "defocus": (0.7, ["defocus"]),
    "motion": (0.7, ["motion", "motion_angle"]),
    "resolution": (1.4, ["resolution", "interpolations"]),
    "noise": (1.0, ["noise"]),
    "shot_noise": (0.4, ["shot_noise"]),
    "jpeg_quality": (1.3, ["jpeg_quality"]),
}
ALWAYS_DRAWN = {"flipped", "rotation", "scale", "shift", "border"}


def draws(strength: float, rate: float | None, count: int = 3000) -> list[Degradation]:
    rng = np.random.default_rng(0)
    return [draw_degradation(rng, strength, rate) for _ in range(count)]


def values(drawn: list[Degradation], name: str) -> Array:
    return np.array([getattr(draw, name) for draw in drawn])


def test_no_cause_occurs_at_rate_zero() -> None:
    for draw in draws(1.0, 0.0, 200):
        changed = {name for name, value in asdict(draw).items() if value != DEFAULTS[name]}
        assert changed <= ALWAYS_DRAWN


@pytest.mark.parametrize(
    ("strength", "rate", "expected"), [(0.2, 0.5, 0.5), (0.2, None, 0.3), (1.0, None, 0.7)]
)
def test_causes_occur_at_their_rate(strength: float, rate: float | None, expected: float) -> None:
    drawn = draws(strength, rate)
    for cause, (weight, names) in CAUSES.items():
        occurred = np.array([getattr(draw, cause) != DEFAULTS[cause] for draw in drawn])
        share = min(1.0, expected * weight)
        if cause == "crop":
            # None of its four sides is cropped.
            share *= 1 - 0.6**4
        assert occurred.mean() == pytest.approx(share, abs=0.03), cause
        for name in names:
            alone = [getattr(draw, name) == DEFAULTS[name] for draw in np.array(drawn, object)[~occurred]]
            assert all(alone) or cause == "crop", name


NORMAL = {
    "rotation": lambda s: 2 + 7 * s,
    "brightness": lambda s: 5 + 25 * s,
}
LOG_NORMAL = {"scale": lambda s: 0.02 + 0.06 * s, "gamma": lambda s: 0.15 + 0.45 * s}
UNIFORM: dict[str, Callable[[float], tuple[float, float]]] = {
    "contrast": lambda s: (0.85 - 0.5 * s, 1.15 + 0.3 * s),
    "saturation": lambda s: (max(0.0, 0.9 - s), 1.3),
    "defocus": lambda s: (0.4, 0.8 + 2.7 * s),
    "motion": lambda s: (2, 4 + 13 * s),
    "motion_angle": lambda s: (0, 180),
    "noise": lambda s: (1, 4 + 20 * s),
    "shot_noise": lambda s: (0.2, 0.5 + 1.5 * s),
}


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_amounts_grow_with_the_strength(strength: float) -> None:
    drawn = draws(strength, 10.0)
    for name, spread in NORMAL.items():
        found = values(drawn, name)
        assert (found.mean(), found.std()) == pytest.approx(
            (0, spread(strength)), abs=0.06 * spread(strength)
        )
    for name, spread in LOG_NORMAL.items():
        found = np.log(values(drawn, name))
        assert (found.mean(), found.std()) == pytest.approx(
            (0, spread(strength)), abs=0.06 * spread(strength)
        )
    for name, limits in UNIFORM.items():
        low, high = limits(strength)
        found = values(drawn, name)
        assert (found.min(), found.max()) == pytest.approx((low, high), abs=0.01 * (high - low)), name
        assert found.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low)), name
    assert values(drawn, "shift").std(axis=0) == pytest.approx([0.7 + 3 * strength] * 2, rel=0.06)
    assert np.log(values(drawn, "tint")).std(axis=0) == pytest.approx([0.03 + 0.08 * strength] * 3, rel=0.06)
    crop = values(drawn, "crop")
    assert (crop > 0).mean(axis=0) == pytest.approx([0.4] * 4, abs=0.04)
    assert crop.max(axis=0) == pytest.approx([0.05 + 0.25 * strength] * 4, rel=0.02)
    resolution = values(drawn, "resolution")
    assert resolution.max() <= 112
    assert resolution.min() == pytest.approx(max(14.0, 112 * math.exp(-2.4 * strength)), rel=0.02)
    assert resolution.max() == pytest.approx(112 * math.exp(-0.8 * strength), rel=0.02)
    quality = values(drawn, "jpeg_quality")
    assert quality.max() <= 95
    assert quality.min() == pytest.approx(95 - 85 * strength, abs=1)


def test_choices_have_their_shares() -> None:
    drawn = draws(0.5, 10.0)
    assert np.mean(values(drawn, "flipped")) == pytest.approx(0.5, abs=0.03)
    assert np.mean(values(drawn, "jpeg_at_low_resolution")) == pytest.approx(0.5, abs=0.03)
    for border in (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101):
        assert (values(drawn, "border") == border).mean() == pytest.approx(1 / 3, abs=0.03)
    down, up = values(drawn, "interpolations").T
    assert (down == AREA).mean() == pytest.approx(0.7 + 0.3 / 5, abs=0.03)
    assert (up == LINEAR).mean() == pytest.approx(0.8 * 2 / 3 + 0.2 / 5, abs=0.03)
    assert (up == cv2.INTER_CUBIC).mean() == pytest.approx(0.8 / 3 + 0.2 / 5, abs=0.03)
    assert len(set(down)) == len(set(up)) == 5
    colours = [draw.occlusion_colour for draw in drawn]
    assert np.mean([colour is None for colour in colours]) == pytest.approx(0.3, abs=0.03)
    channels = np.array([colour for colour in colours if colour is not None])
    assert (channels.min(axis=0), channels.max(axis=0)) == (pytest.approx([0] * 3), pytest.approx([255] * 3))
    x, y, width, height = values(drawn, "occlusion").T
    for centre in (x, y):
        assert (centre.min(), centre.max()) == pytest.approx((8, 104), abs=0.5)
    for side in (width, height):
        assert (side.min(), side.max()) == pytest.approx((0.1 * 112, 0.375 * 112), abs=0.5)


def test_draw_of_a_seed_stays_the_same() -> None:
    # Stored views and generated benchmarks are reproduced from seeds: raise `views._REVISION` with a change.
    draw = draw_degradation(np.random.default_rng(7), 0.6, 10.0)
    assert (draw.flipped, draw.border, draw.interpolations) == (
        False,
        cv2.BORDER_CONSTANT,
        (AREA, cv2.INTER_LANCZOS4),
    )
    assert draw.crop == pytest.approx((0.16424568, 0.15941389, 0, 0))
    assert draw.occlusion == pytest.approx((67.729206, 102.940174, 45.763770, 38.721222))
    assert draw.tint == pytest.approx((0.95885247, 0.99622407, 1.00887727))
    assert (draw.resolution, draw.shot_noise) == pytest.approx((48.6058558, 0.81174897))
    assert (draw.jpeg_quality, draw.jpeg_at_low_resolution) == (76, False)
    frame = next_frame(draw, np.random.default_rng(8))
    assert frame.shift == pytest.approx((-4.07654486, -1.28779472))
    assert (frame.rotation, frame.motion_angle) == pytest.approx((0.21889428, 136.07783346))
    assert frame.jpeg_quality == 78


# ---- clips

VARIED = {
    "rotation": 1.2,
    "brightness": 2.0,
    "motion_angle": 15.0,
    "jpeg_quality": 3.0,
}


def test_frame_of_a_clip_varies_its_draw_a_little() -> None:
    draw = draw_degradation(np.random.default_rng(1), 0.5, 10.0)
    draw = replace(draw, resolution=60.0, jpeg_quality=50, crop=(0.1, 0.0, 0.0, 0.0))
    rng = np.random.default_rng(0)
    frames = [next_frame(draw, rng) for _ in range(3000)]
    for name, spread in VARIED.items():
        found = values(frames, name) - getattr(draw, name)
        # The quality is rounded down to an integer.
        assert found.mean() == pytest.approx(-0.5 if name == "jpeg_quality" else 0, abs=0.07 * spread), name
        assert found.std() == pytest.approx(spread, rel=0.06), name
    for name, spread in {"scale": 0.01, "gamma": 0.04, "resolution": 0.04}.items():
        found = np.log(values(frames, name) / getattr(draw, name))
        assert (found.mean(), found.std()) == pytest.approx((0, spread), abs=0.06 * spread), name
    for name, limits in {"defocus": (0.8, 1.2), "motion": (0.6, 1.3)}.items():
        found = values(frames, name) / getattr(draw, name)
        assert (found.min(), found.max()) == pytest.approx(limits, abs=0.005), name
    assert (values(frames, "shift") - draw.shift).std(axis=0) == pytest.approx([0.8] * 2, rel=0.06)
    moved = values(frames, "occlusion") - draw.occlusion
    assert moved.std(axis=0) == pytest.approx([2, 2, 0, 0], rel=0.06)
    assert moved.mean(axis=0) == pytest.approx([0] * 4, abs=0.15)
    varied = {*VARIED, "scale", "gamma", "resolution", "defocus", "motion", "shift", "occlusion"}
    for field in fields(Degradation):
        if field.name not in varied:
            assert {getattr(frame, field.name) for frame in frames} == {getattr(draw, field.name)}


def test_frame_of_an_unchanged_image_keeps_what_is_off() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        frame = next_frame(Degradation(), rng)
        assert frame.resolution <= 112
        assert (frame.jpeg_quality, frame.occlusion, frame.defocus, frame.motion) == (100, None, 0, 0)
    low = [next_frame(Degradation(jpeg_quality=2), rng).jpeg_quality for _ in range(200)]
    high = [next_frame(Degradation(jpeg_quality=99), rng).jpeg_quality for _ in range(200)]
    assert (min(low), max(high)) == (1, 100)
