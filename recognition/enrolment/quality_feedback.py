"""Quality feedback on a set before it is enrolled: sentences, the most important first.

Derived from the checks of `enrolment.checks`, the measures of `photos.face_measures` and the size of the set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from data.checks.near_duplicates import duplicates_within, sketch
from photos.photo_files import decode_photo
from recognition.enrolment.checks import EnrolmentCheck, check_set
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.samples import independent_samples, known_media, pool_samples
from recognition.model import FaceModel
from recognition.records import AggregatedSet, FaceRecord
from runtime.text import first_lines, listed

_NAMES_SHOWN = 4
_SETS_SHOWN = 20
_NAMES_PER_IDENTITY = 10
_IDENTITIES_SHOWN = 8

# Face height in pixels; backbones of 112 x 112 work down to about 40.
_SMALL = 40.0
# Of 60 press photos 8 in 10 have a sharpness of 0.18 to 0.28; of 28 x 28 pixels enlarged, 0.09 to 0.13.
_BLURRED = 0.13
# Mean and standard deviation of the grey levels.
_DARK, _BRIGHT, _LOW_CONTRAST = 50.0, 210.0, 14.0
# Difference of the two halves of the face as a fraction of their sum.
_SIDE_LIGHT = 0.35
# Degrees of yaw from which a face is seen from the side.
_SIDE_VIEW = 15.0
# Photos and videos below which more would help.
_FEW_SAMPLES = 3
# Fraction of the faces from which a fault is one of the whole set.
_MOST_FACES = 0.5

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Topic(Enum):
    """What feedback is about, the most important first. Values are written to descriptors.json."""

    UNCHECKED = "unchecked"
    OUTLIER = "outlier"
    SEVERAL_IDENTITIES = "several_identities"
    SEVERAL_FACES = "several_faces"
    REPEATS = "repeats"
    SIZE = "size"
    SHARPNESS = "sharpness"
    ILLUMINATION = "illumination"
    QUALITY = "quality"
    NUMBER = "number"
    POSE = "pose"


# Topics that say that a set shows more than one identity.
CONTAMINATION = (Topic.OUTLIER, Topic.SEVERAL_IDENTITIES)


@dataclass(frozen=True)
class Feedback:
    """`text`: one or more sentences; `faces`: indices of the faces concerned, may be empty."""

    topic: Topic
    text: str
    faces: tuple[int, ...] = ()


def quality_feedback(aggregated: AggregatedSet, check: EnrolmentCheck) -> list[Feedback]:
    """Feedback on one set, the most important first; empty for a good set."""
    found = [
        *_unchecked(check),
        *_identities(aggregated, check),
        *face_choice_feedback(aggregated),
        *_repeats(aggregated, check),
        *_quality(aggregated, check),
        *_number(aggregated, check),
        *_views(aggregated),
    ]
    order = list(Topic)
    return sorted(found, key=lambda each: order.index(each.topic))


def contamination_text(model: FaceModel, aggregated: AggregatedSet) -> str:
    """Sentences on other identities that a set may show; empty if there are none."""
    check = check_set(model, aggregated, EnrolmentLimits(), leave_out=False)
    return " ".join(each.text for each in quality_feedback(aggregated, check) if each.topic in CONTAMINATION)


def feedback_text(
    sets: Sequence[AggregatedSet], feedback: Sequence[Sequence[Feedback]], *, all_in: str = "report.html"
) -> str:
    """Feedback on each set for the terminal; `all_in`: what shows the sets that are omitted."""
    shown = [(each.name, found) for each, found in zip(sets, feedback, strict=True) if found]
    if not shown:
        return "quality feedback: none, the sets are ready to be enrolled."
    parts = ["\n    - ".join([f"  {name}", *(each.text for each in found)]) for name, found in shown]
    parts = first_lines(parts, _SETS_SHOWN, "  ... and {} more sets; " + f"{all_in} shows them.")
    return "\n".join(["quality feedback:", *parts])


def face_choice_feedback(aggregated: AggregatedSet) -> list[Feedback]:
    """Which face was used of photos that show several of similar size, and why."""
    found = []
    for agrees in (False, True):
        faces = np.flatnonzero(
            [face.choice is not None and face.choice.agrees == agrees for face in aggregated.faces]
        )
        if not len(faces):
            continue
        chosen = [f"{face.name} ({choice_text(face)})" for face in map(aggregated.faces.__getitem__, faces)]
        photos = "photo shows" if len(faces) == 1 else "photos show"
        reason = "the one that agrees with the rest of the set" if agrees else "the largest"
        text = (
            f"{len(faces):,} {photos} several faces of similar size; {reason} was used: "
            f"{listed(chosen, _NAMES_SHOWN)}."
        )
        if not agrees:
            text += " If another face is meant, crop the photo to it."
        found.append(Feedback(Topic.SEVERAL_FACES, text, _indices(faces)))
    return found


def face_choice_text(sets: Sequence[AggregatedSet]) -> str:
    """`face_choice_feedback` of sets that are not checked, one line each; may be empty."""
    lines = [f"{each.name}: {choice.text}" for each in sets for choice in face_choice_feedback(each)]
    return "".join(f"{line}\n" for line in first_lines(lines, _SETS_SHOWN))


def choice_text(face: FaceRecord) -> str:
    """Which of the faces of its photo was used: by position from the left, and by height."""
    if face.choice is None:
        return ""
    size = "" if face.size is None else f", {face.size:.0f} px high"
    return f"face {face.choice.from_left} of {face.choice.num_faces} from the left{size}"


def num_samples(aggregated: AggregatedSet, check: EnrolmentCheck) -> int:
    """Number of distinct photos and videos; near-duplicates count once."""
    return int(independent_samples(known_media(aggregated), check.group).max()) + 1


def _unchecked(check: EnrolmentCheck) -> list[Feedback]:
    if check.is_calibrated:
        return []
    text = (
        "near-duplicates and photos of other people were not looked for: there are no cosine statistics of "
        "these weights. Measure them with convert.py --check-quality."
    )
    return [Feedback(Topic.UNCHECKED, text)]


def _identities(aggregated: AggregatedSet, check: EnrolmentCheck) -> list[Feedback]:
    outliers = np.flatnonzero(check.outlier)
    if check.num_identities > 1:
        return [_several_identities(aggregated, check, outliers)]
    if not len(outliers):
        return []
    text = (
        f"{len(outliers):,} of {len(aggregated.faces):,} faces may show a different person: "
        f"{_names(aggregated, outliers)}. Check {'it' if len(outliers) == 1 else 'them'} before enrolling "
        "this set."
    )
    return [Feedback(Topic.OUTLIER, text, _indices(outliers))]


def _several_identities(aggregated: AggregatedSet, check: EnrolmentCheck, outliers: Ints) -> Feedback:
    samples = independent_samples(known_media(aggregated), check.group)
    identities = [np.flatnonzero(check.identity == number) for number in range(check.num_identities)]
    # Two photos or videos of one identity each; if one video shows both, its frames are named instead.
    if samples.max() == 1 and all(len(np.unique(check.identity[samples == each])) == 1 for each in (0, 1)):
        directions, _ = pool_samples(aggregated.features, aggregated.norms, samples)
        one, other = (aggregated.faces[faces[0]].name for faces in identities)
        text = (
            f"{one} and {other} have a similarity of {float(directions[0] @ directions[1]):.2f} and may show "
            "two identities. Add a third photo to decide."
        )
        return Feedback(Topic.SEVERAL_IDENTITIES, text, tuple(range(len(aggregated.faces))))
    groups = [
        f"({number}) {_names(aggregated, faces, _NAMES_PER_IDENTITY)}"
        for number, faces in enumerate(identities, start=1)
    ]
    shown = "; ".join(first_lines(groups, _IDENTITIES_SHOWN, "and {} more"))
    text = f"the faces may show {len(groups):,} identities: {shown}."
    if len(outliers):
        verb = "matches" if len(outliers) == 1 else "match"
        text += f" {_names(aggregated, outliers)} {verb} none of them."
    text += " Check them, and make a set for each person."
    return Feedback(Topic.SEVERAL_IDENTITIES, text, _indices(np.flatnonzero(check.identity != 0)))


def _repeats(aggregated: AggregatedSet, check: EnrolmentCheck) -> list[Feedback]:
    """Photos that repeat each other. Frames of one video are expected to.

    Two photos of one session may reach the limit of cosine too, so their pixels are compared as well.
    """
    media = known_media(aggregated)

    def of_several_media(groups: list[Ints]) -> list[Ints]:
        return [faces for faces in groups if len(np.unique(media[faces])) > 1]

    groups = of_several_media([np.flatnonzero(check.group == group) for group in range(check.num_groups)])
    groups = of_several_media([same for faces in groups for same in _same_images(aggregated, faces)])
    if len(groups) > _NAMES_SHOWN:
        faces = np.concatenate(groups)
        text = (
            f"{len(faces):,} faces are copies of {len(groups):,} photos; {len(faces) - len(groups):,} of "
            "them could be removed."
        )
        return [Feedback(Topic.REPEATS, text, _indices(np.sort(faces)))]
    return [
        Feedback(
            Topic.REPEATS,
            f"{len(faces):,} faces are copies of one photo: {_names(aggregated, faces)}. One is enough.",
            _indices(faces),
        )
        for faces in groups
    ]


def _same_images(aggregated: AggregatedSet, faces: Ints) -> list[Ints]:
    """Groups of near-duplicates by cosine that have the same pixels."""
    sketches = [sketch(decode_photo(aggregated.faces[face].thumbnail)) for face in faces]
    first_of = duplicates_within([each[None] for each in sketches])
    firsts = np.array([first_of.get(index, index) for index in range(len(faces))])
    groups = [faces[firsts == first] for first in np.unique(firsts)]
    return [group for group in groups if len(group) > 1]


def _quality(aggregated: AggregatedSet, check: EnrolmentCheck) -> list[Feedback]:
    """Size, sharpness, illumination and low norms."""
    light = "Photos in better light would help."
    sizes = np.array([math.nan if face.size is None else face.size for face in aggregated.faces])
    # Comparisons with NaN are False.
    brightness = _measured(aggregated, "brightness")
    faults = (
        (Topic.SIZE, sizes < _SMALL, f"under {_SMALL:.0f} px high", "Larger photos would help most."),
        (
            Topic.SHARPNESS,
            _measured(aggregated, "sharpness") < _BLURRED,
            "blurred",
            "Sharp photos would help most.",
        ),
        (Topic.ILLUMINATION, brightness < _DARK, "too dark", light),
        (Topic.ILLUMINATION, brightness > _BRIGHT, "overexposed", light),
        (Topic.ILLUMINATION, _measured(aggregated, "contrast") < _LOW_CONTRAST, "low in contrast", light),
        (
            Topic.ILLUMINATION,
            np.abs(_measured(aggregated, "side_light")) > _SIDE_LIGHT,
            "lit from one side only",
            "Photos with light from the front would help.",
        ),
        (Topic.QUALITY, check.poor, "of low quality", "Better photos would add more than many of these."),
    )
    return [
        _fault(aggregated, topic, np.flatnonzero(mask), what, remedy)
        for topic, mask, what, remedy in faults
        if mask.any()
    ]


def _fault(aggregated: AggregatedSet, topic: Topic, faces: Ints, what: str, remedy: str) -> Feedback:
    count = len(aggregated.faces)
    if len(faces) == count:
        which = "the only face is" if count == 1 else f"all {count:,} faces are"
        return Feedback(topic, f"{which} {what}. {remedy}", _indices(faces))
    verb = "is" if len(faces) == 1 else "are"
    text = f"{len(faces):,} of {count:,} faces {verb} {what}: {_names(aggregated, faces)}."
    if len(faces) >= _MOST_FACES * count:
        text += f" {remedy}"
    return Feedback(topic, text, _indices(faces))


def _number(aggregated: AggregatedSet, check: EnrolmentCheck) -> list[Feedback]:
    samples = num_samples(aggregated, check)
    if samples >= _FEW_SAMPLES:
        return []
    what = "is only 1 photo or video" if samples == 1 else f"are only {samples} different photos or videos"
    return [Feedback(Topic.NUMBER, f"there {what}. More from other days would help.")]


def _views(aggregated: AggregatedSet) -> list[Feedback]:
    """Missing views; nothing without landmarks."""
    yaws = _measured(aggregated, "yaw")
    yaws = yaws[np.isfinite(yaws)]
    if len(yaws) < 2:
        return []
    has_front = (np.abs(yaws) < _SIDE_VIEW).any()
    has_left, has_right = (yaws <= -_SIDE_VIEW).any(), (yaws >= _SIDE_VIEW).any()
    if not (has_left or has_right):
        return [Feedback(Topic.POSE, "no view from the side: all faces are frontal.")]
    views = (
        (has_front, "from the front"),
        (has_left, "with the face turned to the left of the image"),
        (has_right, "with the face turned to the right of the image"),
    )
    return [Feedback(Topic.POSE, f"no view {text}.") for has_view, text in views if not has_view]


def _measured(aggregated: AggregatedSet, name: str) -> Floats:
    """(T,) a field of `FaceMeasures`; NaN where it was not measured."""
    measures = (face.measures for face in aggregated.faces)
    return np.array([math.nan if each is None else float(getattr(each, name)) for each in measures])


def _names(aggregated: AggregatedSet, faces: Ints, most: int = _NAMES_SHOWN) -> str:
    return listed([aggregated.faces[face].name for face in faces.tolist()], most)


def _indices(faces: Ints) -> tuple[int, ...]:
    return tuple(faces.tolist())
