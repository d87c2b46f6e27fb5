"""What would help a set most before it is enrolled: advice in sentences, the most urgent first.

Made of what `enrolment` found, of the faces' measures (`photos.face_measures`) and of the set's size. Nothing
is measured here; a limit that decides whether a sentence is said stands in `AdviceLimits`.
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
from recognition.enrolment.checks import EnrolmentCheck, EnrolmentLimits, check_set, told_media
from recognition.enrolment.outliers import face_units, pooled
from recognition.model import FaceModel
from recognition.sets import DescribedSet, FaceRecord

_NAMES_SHOWN = 4
_SETS_SHOWN = 20
_NAMES_OF_A_PERSON = 10
_PEOPLE_SHOWN = 8
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Topic(Enum):
    """What a piece of advice is about, the most urgent first."""

    UNCHECKED = "unchecked"
    STRANGER = "stranger"
    DISAGREEMENT = "disagreement"
    SEVERAL_FACES = "several_faces"
    REPEATS = "repeats"
    SIZE = "size"
    SHARPNESS = "sharpness"
    LIGHT = "light"
    QUALITY = "quality"
    NUMBER = "number"
    POSE = "pose"


# That a set shows more than one person.
CONTAMINATION = (Topic.STRANGER, Topic.DISAGREEMENT)


@dataclass(frozen=True)
class Advice:
    """`text`: one sentence for a person; `faces`: (n,) which faces of the set it is about, may be empty."""

    topic: Topic
    text: str
    faces: tuple[int, ...] = ()


@dataclass(frozen=True)
class AdviceLimits:
    """When something is worth a word.

    Sharpness was measured on 60 press photos: 0.18 to 0.28 in 8 of 10; shrunk to 28 x 28 pixels before, 0.09
    to 0.13. The others are conventions: 40 pixels are what backbones of 112 x 112 still get by with.

    Attributes:
        small: height of a face in its photo, pixels.
        blurred: sharpness below which a face is blurred.
        dark, bright: mean level of the face.
        flat: standard deviation of its levels below which it has hardly any contrast.
        side_light: difference of the two halves of the face, as share of their sum.
        turned: degrees of yaw from which on a face is seen from the side.
        few: photos and videos below which more would help.
        most: share of the faces from which on a fault counts as the set's.
    """

    small: float = 40.0
    blurred: float = 0.13
    dark: float = 50.0
    bright: float = 210.0
    flat: float = 14.0
    side_light: float = 0.35
    turned: float = 15.0
    few: int = 3
    most: float = 0.5


def advise(
    described: DescribedSet, check: EnrolmentCheck, limits: AdviceLimits | None = None
) -> list[Advice]:
    """Advice on one set, the most urgent first; none where nothing is to be said."""
    limits = limits or AdviceLimits()
    found = [
        *_unchecked(check),
        *_people(described, check),
        *face_choices(described),
        *_repeats(described, check),
        *_faults(described, check, limits),
        *_few(described, check, limits),
        *_views(described, limits),
    ]
    order = list(Topic)
    return sorted(found, key=lambda each: order.index(each.topic))


def _unchecked(check: EnrolmentCheck) -> list[Advice]:
    if check.is_trusted:
        return []
    text = (
        "near-duplicates and photos of other people were not looked for: nobody measured how alike people "
        "are for these weights (convert.py --check-quality)."
    )
    return [Advice(Topic.UNCHECKED, text)]


def _people(described: DescribedSet, check: EnrolmentCheck) -> list[Advice]:
    if check.num_identities > 1:
        return [_several_people(described, check)]
    strangers = np.flatnonzero(check.stranger)
    if not len(strangers):
        return []
    them = "it" if len(strangers) == 1 else "them"
    text = (
        f"{len(strangers):,} of {len(described.faces):,} faces may show a different person: "
        f"{_names(described, strangers)}. Check {them} before enrolling this set."
    )
    return [Advice(Topic.STRANGER, text, _places(strangers))]


def _several_people(described: DescribedSet, check: EnrolmentCheck) -> Advice:
    """Which faces belong together."""
    units = face_units(told_media(described), check.group)
    people = [np.flatnonzero(check.identity == number) for number in range(check.num_identities)]
    # Of two photos or videos each is a person; of a video of two people the frames are named.
    if int(units.max()) == 1 and all(len(np.unique(check.identity[units == unit])) == 1 for unit in (0, 1)):
        one, other = (described.faces[faces[0]].name for faces in people)
        text = (
            f"{one} and {other} are little alike ({_cosine(described, units):.2f}) and may show two people. "
            "A third photo would tell."
        )
        return Advice(Topic.DISAGREEMENT, text, tuple(range(len(described.faces))))
    groups = [
        f"({number}) {_names(described, faces, _NAMES_OF_A_PERSON)}"
        for number, faces in enumerate(people, start=1)
    ]
    more = f"; and {len(groups) - _PEOPLE_SHOWN:,} more" if len(groups) > _PEOPLE_SHOWN else ""
    text = f"it may show {len(people):,} people: {'; '.join(groups[:_PEOPLE_SHOWN])}{more}."
    others = np.flatnonzero(check.stranger)
    if len(others):
        verb = "agrees" if len(others) == 1 else "agree"
        text += f" With none of them {verb} {_names(described, others)}."
    return Advice(
        Topic.DISAGREEMENT,
        f"{text} Check them, and make a set of each person.",
        _places(np.flatnonzero(check.identity != 0)),
    )


def contamination(model: FaceModel, described: DescribedSet) -> str:
    """Whom a set may show beside its person, in sentences; '' for nobody."""
    check = check_set(model, described, EnrolmentLimits(), leave_out=False)
    return " ".join(one.text for one in advise(described, check) if one.topic in CONTAMINATION)


def face_choices(described: DescribedSet) -> list[Advice]:
    """Which face was taken of photos that show several of about the same size, and why."""
    found = []
    for agrees in (False, True):
        faces = np.array(
            [
                number
                for number, face in enumerate(described.faces)
                if face.choice is not None and face.choice.agrees == agrees
            ],
            np.int64,
        )
        if not len(faces):
            continue
        shown = [
            f"{described.faces[face].name} ({choice_text(described.faces[face])})"
            for face in faces[:_NAMES_SHOWN].tolist()
        ]
        photos = "photo shows" if len(faces) == 1 else "photos show"
        taken = "the one that agrees with the rest of the set" if agrees else "the largest"
        text = (
            f"{len(faces):,} {photos} several faces of about the same size; {taken} was taken: "
            f"{', '.join(shown)}{_more(faces, shown)}."
        )
        if not agrees:
            text += " If another one is meant, crop the photo to it."
        found.append(Advice(Topic.SEVERAL_FACES, text, _places(faces)))
    return found


def face_choices_text(sets: Sequence[DescribedSet]) -> str:
    """`face_choices` of sets that are not checked, a line each; '' for none."""
    lines = [f"{each.name}: {choice.text}" for each in sets for choice in face_choices(each)]
    more = [f"... and {len(lines) - _SETS_SHOWN:,} more."] if len(lines) > _SETS_SHOWN else []
    return "".join(f"{line}\n" for line in lines[:_SETS_SHOWN] + more)


def choice_text(face: FaceRecord) -> str:
    """Which of the faces of its photo was taken: by number from the left, and by height."""
    if face.choice is None:
        return ""
    size = "" if face.size is None else f", {face.size:.0f} px high"
    return f"face {face.choice.from_left} of {face.choice.num_faces} from the left{size}"


def _repeats(described: DescribedSet, check: EnrolmentCheck) -> list[Advice]:
    """The frames of a video are near-duplicates by nature; photos that repeat each other are not.

    Two photos of a sitting may reach the limit of cosine too, so their pixels are compared as well.
    """
    media = told_media(described)
    groups = [np.flatnonzero(check.group == group) for group in range(check.num_groups)]
    groups = [faces for faces in groups if len(np.unique(media[faces])) > 1]
    groups = [same for faces in groups for same in _same_pictures(described, faces)]
    groups = [faces for faces in groups if len(np.unique(media[faces])) > 1]
    if len(groups) > _NAMES_SHOWN:
        faces = np.concatenate(groups)
        text = (
            f"{len(faces):,} faces repeat {len(groups):,} moments: {len(faces) - len(groups):,} of them "
            "could be left out."
        )
        return [Advice(Topic.REPEATS, text, _places(np.sort(faces)))]
    return [
        Advice(
            Topic.REPEATS,
            f"these {_number_of(len(faces))} faces are one photo: {_names(described, faces)}. One is enough.",
            _places(faces),
        )
        for faces in groups
    ]


def _same_pictures(described: DescribedSet, faces: Ints) -> list[Ints]:
    """Of near-duplicates by cosine, those that show one picture."""
    sketches = [sketch(decode_photo(described.faces[face].thumbnail)) for face in faces]
    first_of = duplicates_within([each[None] for each in sketches])
    firsts = np.array([first_of.get(place, place) for place in range(len(faces))])
    groups = [faces[firsts == first] for first in np.unique(firsts)]
    return [group for group in groups if len(group) > 1]


def _faults(described: DescribedSet, check: EnrolmentCheck, limits: AdviceLimits) -> list[Advice]:
    """Size, sharpness, light and what the backbone itself makes of the faces."""
    light = "Photos in better light would help."
    # A comparison with NaN, which nobody measured, is False.
    kinds = (
        (
            Topic.SIZE,
            sizes(described) < limits.small,
            f"under {limits.small:.0f} px high",
            "Larger photos, or from nearer, would help most.",
        ),
        (
            Topic.SHARPNESS,
            measured(described, "sharpness") < limits.blurred,
            "blurred",
            "Sharp photos would help most.",
        ),
        (Topic.LIGHT, measured(described, "brightness") < limits.dark, "too dark", light),
        (Topic.LIGHT, measured(described, "brightness") > limits.bright, "overexposed", light),
        (Topic.LIGHT, measured(described, "contrast") < limits.flat, "almost without contrast", light),
        (
            Topic.LIGHT,
            np.abs(measured(described, "side_light")) > limits.side_light,
            "lit from one side alone",
            "Photos with light from the front would help.",
        ),
        (Topic.QUALITY, check.poor, "too poor to help", "Better ones would add more than many of these."),
    )
    found = [
        _fault(described, topic, np.flatnonzero(mask), what, remedy, limits)
        for topic, mask, what, remedy in kinds
    ]
    return [advice for advice in found if advice is not None]


def _fault(
    described: DescribedSet,
    topic: Topic,
    faces: NDArray[np.int64],
    what: str,
    remedy: str,
    limits: AdviceLimits,
) -> Advice | None:
    count = len(described.faces)
    if not len(faces):
        return None
    if len(faces) == count:
        which = "the only face is" if count == 1 else f"all {_number_of(count)} faces are"
        return Advice(topic, f"{which} {what}. {remedy}", _places(faces))
    verb = "is" if len(faces) == 1 else "are"
    text = f"{_number_of(len(faces))} of {_number_of(count)} faces {verb} {what}: {_names(described, faces)}."
    return Advice(topic, f"{text} {remedy}" if len(faces) >= limits.most * count else text, _places(faces))


def _few(described: DescribedSet, check: EnrolmentCheck, limits: AdviceLimits) -> list[Advice]:
    units = num_units(described, check)
    if units >= limits.few:
        return []
    what = "one photo or video" if units == 1 else f"{_number_of(units)} different photos or videos"
    verb = "is" if units == 1 else "are"
    return [Advice(Topic.NUMBER, f"there {verb} only {what}. More from other days would help.")]


def _views(described: DescribedSet, limits: AdviceLimits) -> list[Advice]:
    """Which sides are missing; nothing where no landmarks tell."""
    yaws = measured(described, "yaw")
    yaws = yaws[np.isfinite(yaws)]
    if len(yaws) < 2:
        return []
    front = bool((np.abs(yaws) < limits.turned).any())
    left, right = bool((yaws <= -limits.turned).any()), bool((yaws >= limits.turned).any())
    if not (left or right):
        return [Advice(Topic.POSE, "no view from the side: all faces look to the front.")]
    missing = [] if front else ["from the front"]
    missing += [] if left else ["with the face turned to the left of the picture"]
    missing += [] if right else ["with the face turned to the right of the picture"]
    return [Advice(Topic.POSE, f"no view {text}.") for text in missing]


def sizes(described: DescribedSet) -> Floats:
    """(T,) heights in the photo, pixels; NaN where they are not known."""
    return np.array([math.nan if face.size is None else face.size for face in described.faces])


def measured(described: DescribedSet, name: str) -> Floats:
    """(T,) one of the fields of `FaceMeasures`; NaN where nobody measured."""
    return np.array(
        [
            math.nan if face.measures is None else float(getattr(face.measures, name))
            for face in described.faces
        ]
    )


def num_units(described: DescribedSet, check: EnrolmentCheck) -> int:
    """Photos and videos that differ: near-duplicates count once."""
    return int(face_units(told_media(described), check.group).max()) + 1


def _cosine(described: DescribedSet, units: NDArray[np.int64]) -> float:
    """Of the two units of a set."""
    directions, _ = pooled(described.features, described.norms, units)
    return float(directions[0] @ directions[1])


def _names(described: DescribedSet, faces: NDArray[np.int64], most: int = _NAMES_SHOWN) -> str:
    names = [described.faces[face].name for face in faces[:most].tolist()]
    return f"{', '.join(names)}{_more(faces, names)}"


def _more(faces: NDArray[np.int64], shown: list[str]) -> str:
    return f" and {len(faces) - len(shown):,} more" if len(faces) > len(shown) else ""


def _places(faces: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(faces.tolist())


def _number_of(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else f"{number:,}"
