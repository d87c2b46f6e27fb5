"""Augmentation: operations equal those of PIL and torchvision, draws have the published ranges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment, RandomResizedCrop

from data.sampling import augmentation
from data.sampling.augmentation import (
    Augmentation,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_sharpness,
    apply_clip_operation,
    autocontrast,
    clip_transform,
    crop_window,
    equalize,
    low_resolution,
    photometric,
    random_crop,
    random_horizontal_flip,
    shrink_and_enlarge,
)

Array = np.ndarray
Random = np.random.Generator


def smooth_face(height: int, width: int) -> Array:
    coarse = np.random.default_rng(1).integers(20, 236, (9, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


IMAGES = {
    "face": smooth_face(112, 112),
    "wide": np.random.default_rng(2).integers(0, 256, (37, 50, 3), np.uint8),
    "tall": smooth_face(61, 40) // 2 + 30,
    "dark": np.random.default_rng(3).integers(0, 3, (20, 20, 3), np.uint8),
    "constant": np.full((16, 16, 3), 77, np.uint8),
    "empty channel": np.random.default_rng(4).integers(0, 256, (24, 30, 3), np.uint8) * np.uint8([1, 0, 1]),
}


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> Array:
    return IMAGES[request.param].copy()


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the augmentations in the order of their calls."""
    names: list[str] = []

    def spy(name: str) -> Callable[[Array, Random], Array]:
        def noted(image: Array, rng: Random) -> Array:
            names.append(name)
            return image

        return noted

    for name in ("random_crop", "low_resolution", "photometric"):
        monkeypatch.setattr(augmentation, name, spy(name))
    return names


# ---- the AdaFace augmentations


def test_augmentations_have_their_own_probabilities_and_a_fixed_order(called: list[str]) -> None:
    image, rng = IMAGES["face"], np.random.default_rng(0)
    for only in range(3):
        probs = [float(number == only) for number in range(3)]
        Augmentation(probs[0], probs[1], probs[2]).apply(image, rng)
    assert called == ["random_crop", "low_resolution", "photometric"]
    called.clear()
    Augmentation(1, 1, 1).apply(image, rng)
    assert called == ["random_crop", "low_resolution", "photometric"]
    called.clear()
    for _ in range(200):
        assert Augmentation(0, 0, 0).apply(image, rng) is image
    assert called == []
    for _ in range(4000):
        Augmentation(0.1, 0.3, 0.7).apply(image, rng)
    shares = Counter(called)
    assert shares["random_crop"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert shares["low_resolution"] / 4000 == pytest.approx(0.3, abs=0.03)
    assert shares["photometric"] / 4000 == pytest.approx(0.7, abs=0.03)


def slow_crop_window(height: int, width: int, rng: Random) -> tuple[int, int, int, int]:
    """`torchvision.transforms.RandomResizedCrop` as it is written there, for another generator."""
    for _ in range(10):
        target_area = height * width * rng.uniform(0.2, 1.0)
        aspect_ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            return top, int(rng.integers(0, width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(w / (3 / 4))
    elif width / height > 4 / 3:
        w = round(h * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


@given(st.integers(1, 130), st.integers(1, 130), st.integers(0, 2**32 - 1))
def test_crop_is_that_of_torchvision(height: int, width: int, seed: int) -> None:
    window = crop_window(height, width, np.random.default_rng(seed))
    assert window == slow_crop_window(height, width, np.random.default_rng(seed))
    top, left, h, w = window
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    assert min(h, w) > 0


@pytest.mark.parametrize("shape", [(10, 100), (100, 10)])
def test_crop_of_a_long_image_is_centred_as_in_torchvision(shape: tuple[int, int]) -> None:
    transform = RandomResizedCrop(112, scale=(0.2, 1.0))
    expected = transform.make_params([Image.new("RGB", shape[::-1])])
    found = crop_window(*shape, np.random.default_rng(0))
    assert found == tuple(expected[key] for key in ("top", "left", "height", "width"))


def test_crop_is_tried_ten_times() -> None:
    class Failing(np.random.Generator):
        tries = 0

        def uniform(self, low: float, high: float) -> float:
            self.tries += low == 0.2
            return high

    rng = Failing(np.random.PCG64(0))
    assert crop_window(50, 50, rng) == (0, 0, 50, 50)
    assert rng.tries == 10


def test_crop_has_the_area_and_the_ratio_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([crop_window(1120, 1120, rng) for _ in range(4000)])
    area, ratio = drawn[:, 2] * drawn[:, 3] / 1120**2, drawn[:, 3] / drawn[:, 2]
    assert area.min() == pytest.approx(0.2, abs=0.01)
    # Large areas fit with a ratio near 1 only and are drawn less often.
    assert 0.9 < area.max() <= 1
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)
    assert (ratio.min(), ratio.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.01)


def test_crop_keeps_its_window_in_place_and_blackens_the_rest() -> None:
    image = np.random.default_rng(0).integers(1, 256, (40, 60, 3), np.uint8)
    for seed in range(30):
        top, left, height, width = crop_window(40, 60, np.random.default_rng(seed))
        inside = np.zeros((40, 60, 1), bool)
        inside[top : top + height, left : left + width] = True
        cropped = random_crop(image, np.random.default_rng(seed))
        assert np.array_equal(cropped, np.where(inside, image, 0))


def test_low_resolution_resizes_down_and_up_with_any_interpolations(monkeypatch: pytest.MonkeyPatch) -> None:
    image = IMAGES["wide"]
    calls: list[tuple[tuple[int, ...], tuple[int, int], int]] = []
    resize = cv2.resize

    def spy(image: Array, size: tuple[int, int], interpolation: int) -> Array:
        calls.append((image.shape, size, interpolation))
        return resize(image, size, interpolation=interpolation)

    monkeypatch.setattr(cv2, "resize", spy)
    kinds = [cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4]
    used = Counter()
    for seed in range(400):
        calls.clear()
        changed = shrink_and_enlarge(image, 0.45, np.random.default_rng(seed))
        (before, small, down), (between, large, up) = calls
        assert [down, up] == [kinds[drawn] for drawn in np.random.default_rng(seed).integers(5, size=2)]
        assert (before, small, between, large) == ((37, 50, 3), (22, 16), (16, 22, 3), (50, 37))
        assert np.array_equal(
            changed, resize(resize(image, small, interpolation=down), large, interpolation=up)
        )
        used[down, up] += 1
    assert set(used) == {(down, up) for down in kinds for up in kinds}
    calls.clear()
    shrink_and_enlarge(image, 0.001, np.random.default_rng(0))
    assert calls[0][1] == (1, 1)


def test_low_resolution_has_a_fifth_to_the_whole_of_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[float] = []
    monkeypatch.setattr(augmentation, "shrink_and_enlarge", lambda image, side, rng: sides.append(side))
    rng = np.random.default_rng(0)
    for _ in range(4000):
        low_resolution(IMAGES["face"], rng)
    assert (min(sides), max(sides)) == pytest.approx((0.2, 1.0), abs=0.002)
    assert np.mean(sides) == pytest.approx(0.6, abs=0.01)


ENHANCERS = {
    adjust_brightness: ImageEnhance.Brightness,
    adjust_contrast: ImageEnhance.Contrast,
    adjust_saturation: ImageEnhance.Color,
    adjust_sharpness: ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("factor", [0.0, 0.27, 0.5, 0.73, 1.0, 1.27, 1.5, 2.0])
@pytest.mark.parametrize("adjust", ENHANCERS, ids=lambda adjust: adjust.__name__)
def test_photometric_changes_are_those_of_pil(
    image: Array, adjust: Callable[[Array, float], Array], factor: float
) -> None:
    expected = ENHANCERS[adjust](Image.fromarray(image)).enhance(factor)
    assert np.array_equal(adjust(image, factor), np.asarray(expected))


def test_photometric_draws_three_factors_and_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, float]] = []
    for name in ("adjust_brightness", "adjust_contrast", "adjust_saturation"):

        def spy(image: Array, factor: float, name: str = name) -> Array:
            made.append((name, factor))
            return image

        monkeypatch.setattr(augmentation, name, spy)
    rng = np.random.default_rng(0)
    for _ in range(3000):
        photometric(IMAGES["face"], rng)
    names, factors = [name for name, _ in made], np.array([factor for _, factor in made])
    orders = Counter(tuple(names[first : first + 3]) for first in range(0, len(names), 3))
    assert len(orders) == 6
    assert all(len(set(order)) == 3 for order in orders)
    assert min(orders.values()) > 0.8 * 500
    assert (factors.min(), factors.max()) == pytest.approx((0.5, 1.5), abs=0.002)
    assert np.corrcoef(factors.reshape(-1, 3).T)[0, 1:] == pytest.approx(0, abs=0.06)


def test_photometric_applies_pils_changes_one_after_another(image: Array) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        factors, order = rng.uniform(0.5, 1.5, 3), rng.permutation(3)
        expected = Image.fromarray(image)
        for which in order:
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
            expected = enhancer(expected).enhance(factors[which])
        assert np.array_equal(photometric(image, np.random.default_rng(seed)), np.asarray(expected))


# ---- clip frames and the flip

RAND_AUGMENT = RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=31)
OPERATIONS = list(RandAugment._AUGMENTATION_SPACE)


def torchvision_operation(name: str, image: Array, sign: float) -> Array:
    magnitudes, signed = RandAugment._AUGMENTATION_SPACE[name]
    drawn = magnitudes(31, *image.shape[:2])
    magnitude = 0.0 if drawn is None else float(drawn[9]) * (sign if signed else 1)
    changed = RAND_AUGMENT._apply_image_or_video_transform(
        Image.fromarray(image), name, magnitude, interpolation=InterpolationMode.NEAREST, fill={}
    )
    return np.asarray(changed)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_clip_operations_are_those_of_torchvision(image: Array, name: str, sign: float) -> None:
    different = apply_clip_operation(name, image, sign) != torchvision_operation(name, image, sign)
    # PIL rotates with fixed-point coordinates, which round a pixel of a large image to its neighbour.
    assert different.any(axis=-1).sum() <= (2 if name == "Rotate" else 0)


def test_autocontrast_and_equalize_are_those_of_pil(image: Array) -> None:
    assert np.array_equal(autocontrast(image), np.asarray(ImageOps.autocontrast(Image.fromarray(image))))
    assert np.array_equal(equalize(image), np.asarray(ImageOps.equalize(Image.fromarray(image))))


def test_clip_frame_gets_two_operations_of_random_sign() -> None:
    image = IMAGES["face"]
    drawn = Counter()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        expected = image
        for _ in range(2):
            sign = -1.0 if rng.random() < 0.5 else 1.0
            name = OPERATIONS[rng.integers(14)]
            drawn[name, sign] += 1
            expected = apply_clip_operation(name, expected, sign)
        assert np.array_equal(clip_transform(image, np.random.default_rng(seed)), expected)
    assert len(drawn) == 28


def test_half_of_the_faces_are_flipped_horizontally() -> None:
    image, rng = IMAGES["wide"], np.random.default_rng(0)
    flipped = 0
    for _ in range(2000):
        result = random_horizontal_flip(image, rng)
        flipped += not np.array_equal(result, image)
        assert np.array_equal(result, image) or np.array_equal(result, image[:, ::-1])
    assert flipped / 2000 == pytest.approx(0.5, abs=0.04)


# ---- every operation

EVERY = {
    "augmentation": Augmentation(0.5, 0.5, 0.5).apply,
    "clip_transform": clip_transform,
    "random_horizontal_flip": random_horizontal_flip,
    "random_crop": random_crop,
    "low_resolution": low_resolution,
    "photometric": photometric,
}


@pytest.mark.parametrize("name", EVERY)
def test_result_is_uint8_of_the_same_shape_and_depends_on_the_generator_only(name: str, image: Array) -> None:
    before, results = image.copy(), []
    image.flags.writeable = False
    for seed in range(40):
        result = EVERY[name](image, np.random.default_rng(seed))
        np.random.default_rng(seed).random()
        assert (result.dtype, result.shape) == (np.uint8, image.shape)
        assert np.array_equal(EVERY[name](image, np.random.default_rng(seed)), result)
        results.append(result.tobytes())
    assert np.array_equal(image, before)
    # A horizontal flip does not change a constant image.
    assert len(set(results)) > 1 or len(np.unique(before)) == 1
