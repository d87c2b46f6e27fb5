"""Plan a set benchmark: assign media to templates, choose stressed media and pairs. No pixels.

The plan depends on seed, protocol and media only. Fractions are exact up to rounding of the number of media.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from set_benchmark.media import MediaPool
from set_benchmark.protocol import BenchmarkProtocol

Generator = np.random.Generator


@dataclass(frozen=True)
class PlannedMedium:
    """A medium of a template: `frames` frames of medium `shown` of the pool.

    More frames than the medium has are variations of them. `is_impostor`: it shows another subject; `times`:
    repetitions of each frame.
    """

    template: int
    shown: int
    frames: int = 1
    is_impostor: bool = False
    is_degraded: bool = False
    times: int = 1


@dataclass(frozen=True)
class BenchmarkPlan:
    """Templates 0..M-1 by subject, the gallery template first.

    `subjects`: sorted names; `subject_of` (M,); `is_gallery` (M,); `gallery_of` (S,) gallery 0 or 1 of each
    subject; `media`: in the order of templates; `pairs` (n, 2) templates, first < second; `too_few`: number
    of subjects with too few media.
    """

    subjects: list[str]
    subject_of: NDArray[np.int64]
    is_gallery: NDArray[np.bool_]
    gallery_of: NDArray[np.int64]
    media: list[PlannedMedium]
    pairs: NDArray[np.int64]
    too_few: int


def plan_benchmark(pool: MediaPool, protocol: BenchmarkProtocol, seed: int) -> BenchmarkPlan:
    """Make the plan.

    Raises:
        InputError: too few subjects with enough media, or a fraction of impostor media that is not possible.
    """
    media_of: dict[int, list[int]] = {}
    for number, medium in enumerate(pool.media):
        media_of.setdefault(medium.subject, []).append(number)
    able = [subject for subject in sorted(media_of) if _suffices(pool, media_of[subject], protocol)]
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(able).tolist() if able else []
    if protocol.subjects:
        order = order[: protocol.subjects]
    order = _without_impostor_subjects(pool, media_of, protocol, order, seed)
    taken = sorted(order)
    if len(taken) < 2:
        raise InputError(_too_few(pool, media_of, protocol, len(able)))
    templates: list[tuple[int, list[int]]] = []
    for place, subject in enumerate(taken):
        own = np.random.default_rng([seed, 2, _number_of(pool.subjects[subject])])
        templates += [(place, media) for media in _templates_of(pool, media_of[subject], protocol, own)]
    subject_of = np.array([place for place, _ in templates], np.int64)
    is_gallery = np.diff(subject_of, prepend=-1) > 0
    planned = [
        PlannedMedium(template, shown) for template, (_, media) in enumerate(templates) for shown in media
    ]
    free = set(range(len(pool.media))) - {each.shown for each in planned}
    planned = _stressed(pool, protocol, planned, is_gallery, sorted(free), seed)
    return BenchmarkPlan(
        subjects=[pool.subjects[subject] for subject in taken],
        subject_of=subject_of,
        is_gallery=is_gallery,
        gallery_of=np.arange(len(taken)) % 2,
        media=planned,
        pairs=_pairs(subject_of, is_gallery, protocol, np.random.default_rng([seed, 3])),
        too_few=len(pool.subjects) - len(able),
    )


def _number_of(name: str) -> int:
    """A seed from the subject's name, so that its templates do not depend on other subjects."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "little")


# ------------------------------------------------------------------------------------------ templates


def _suffices(pool: MediaPool, media: list[int], protocol: BenchmarkProtocol) -> bool:
    stills = sum(not pool.media[number].is_clip for number in media)
    enough_stills = protocol.gallery_kind == "any" or stills >= protocol.gallery_media[0]
    return len(media) >= protocol.min_media and enough_stills


def _templates_of(
    pool: MediaPool, media: list[int], protocol: BenchmarkProtocol, rng: Generator
) -> list[list[int]]:
    """Disjoint media of the gallery template and of each probe template."""
    left = rng.permutation(media).tolist()
    wanted = int(rng.integers(protocol.templates[0], protocol.templates[1] + 1))
    # Media that the minimum number of templates does not need.
    spare = len(media) - protocol.min_media
    least, most = protocol.gallery_media
    size = min(int(rng.integers(least, most + 1)), least + spare)
    fitting = [m for m in left if protocol.gallery_kind == "any" or not pool.media[m].is_clip][:size]
    left = [m for m in left if m not in fitting]
    spare -= len(fitting) - least
    found = [fitting]
    least, most = protocol.probe_media
    for number in range(1, wanted):
        needed = number < protocol.templates[0]
        if not needed and spare < least:
            break
        size = int(rng.integers(least, most + 1))
        size = min(size, least + spare) if needed else min(size, spare)
        spare -= size - least if needed else size
        found.append(left[:size])
        left = left[size:]
    return found


def _too_few(pool: MediaPool, media_of: dict[int, list[int]], protocol: BenchmarkProtocol, able: int) -> str:
    counts = Counter(len(media) for media in media_of.values())
    most = ", ".join(f"{number} of {count}" for count, number in sorted(counts.items(), reverse=True)[:5])
    stills = ", including stills," if protocol.gallery_kind == "stills" else ""
    impostors = ", and further subjects for impostor media" if protocol.stress.foreign else ""
    return (
        f"{able} of {len(pool.subjects):,} subjects have the {protocol.min_media} media{stills} that "
        f"protocol {protocol.name} needs; expected 2 or more{impostors}. Media per subject: "
        f"{most or 'none'}. Lower 'templates' or 'probe_media' in the protocol, or add images."
    )


# --------------------------------------------------------------------------------------------- stress


def _without_impostor_subjects(
    pool: MediaPool,
    media_of: dict[int, list[int]],
    protocol: BenchmarkProtocol,
    order: list[int],
    seed: int,
) -> list[int]:
    """Remove subjects until the others provide enough impostor media.

    Subjects of impostor media have no templates, or the same image could be on both sides of a pair.
    """
    if not protocol.stress.foreign:
        return order
    order = list(order)
    in_use = set(order)
    impostors = sum(len(media) for subject, media in media_of.items() if subject not in in_use)
    needed = sum(_probe_media(pool, media_of[s], protocol, seed, pool.subjects[s]) for s in order)
    while len(order) > 2 and impostors < round(protocol.stress.foreign * needed):
        subject = order.pop()
        impostors += len(media_of[subject])
        needed -= _probe_media(pool, media_of[subject], protocol, seed, pool.subjects[subject])
    return order


def _probe_media(pool: MediaPool, media: list[int], protocol: BenchmarkProtocol, seed: int, name: str) -> int:
    rng = np.random.default_rng([seed, 2, _number_of(name)])
    return sum(len(each) for each in _templates_of(pool, media, protocol, rng)[1:])


def _stressed(
    pool: MediaPool,
    protocol: BenchmarkProtocol,
    planned: list[PlannedMedium],
    is_gallery: NDArray[np.bool_],
    free: list[int],
    seed: int,
) -> list[PlannedMedium]:
    """Apply the stress of the protocol to probe media."""
    stress = protocol.stress
    probes = [place for place, each in enumerate(planned) if not is_gallery[each.template]]
    planned = list(planned)
    if stress.template_sizes:
        planned, probes = _cut_to_sizes(planned, probes, stress.template_sizes, seed)
    in_probes = {planned[place].shown for place in probes}
    impostors = [n for n in free if pool.media[n].subject not in {pool.media[m].subject for m in in_probes}]
    for place, shown in _impostor_media(planned, probes, impostors, stress.foreign, seed):
        planned[place] = replace(planned[place], shown=shown, is_impostor=True)
    for place in _share(probes, stress.degraded, seed, 5):
        planned[place] = replace(planned[place], is_degraded=True)
    rng = np.random.default_rng([seed, 6])
    low, high = protocol.clip_frames
    for place, each in enumerate(planned):
        medium = pool.media[each.shown]
        frames = min(len(medium.frames), int(rng.integers(low, high + 1))) if medium.is_clip else 1
        planned[place] = replace(each, frames=frames)
    stills = [place for place in probes if not pool.media[planned[place].shown].is_clip]
    for place in _share(stills, stress.simulated_clips, seed, 7):
        planned[place] = replace(planned[place], frames=int(rng.integers(low, high + 1)))
    if stress.template_sizes:
        _fill_to_sizes(planned, probes, stress.template_sizes, seed)
    for place in _share(probes, stress.repeated, seed, 8):
        times = int(rng.integers(stress.repeats[0], stress.repeats[1] + 1))
        planned[place] = replace(planned[place], times=times)
    return planned


def _share(places: list[int], share: float, seed: int, what: int) -> list[int]:
    """A random fraction of `places`, sorted."""
    chosen = np.random.default_rng([seed, what]).permutation(places)[: round(share * len(places))]
    return sorted(chosen.tolist())


def _impostor_media(
    planned: list[PlannedMedium], probes: list[int], impostors: list[int], share: float, seed: int
) -> list[tuple[int, int]]:
    """Indices of media to replace, and the impostor media of the pool; less than half of any template."""
    wanted = round(share * len(probes))
    if not wanted:
        return []
    rng = np.random.default_rng([seed, 4])
    sizes = Counter(planned[place].template for place in probes)
    remaining = {template: (size - 1) // 2 for template, size in sizes.items()}
    possible = sum(remaining.values())
    if wanted > min(possible, len(impostors)):
        raise InputError(
            f"stress: foreign {share:g} of {len(probes):,} probe media requires {wanted:,} impostor media; "
            f"{possible:,} are possible with less than half of each template, and {len(impostors):,} are "
            "available. Lower 'foreign', raise 'probe_media', or add subjects."
        )
    chosen: list[int] = []
    for place in rng.permutation(probes).tolist():
        if len(chosen) < wanted and remaining[planned[place].template]:
            remaining[planned[place].template] -= 1
            chosen.append(place)
    shown = rng.permutation(impostors)[:wanted].tolist()
    return list(zip(sorted(chosen), shown, strict=True))


def _sizes_of(templates: list[int], sizes: tuple[int, ...], seed: int) -> dict[int, int]:
    """Assign the sizes in turn to the templates in random order."""
    order = np.random.default_rng([seed, 9]).permutation(sorted(set(templates))).tolist()
    return {template: sizes[place % len(sizes)] for place, template in enumerate(order)}


def _cut_to_sizes(
    planned: list[PlannedMedium], probes: list[int], sizes: tuple[int, ...], seed: int
) -> tuple[list[PlannedMedium], list[int]]:
    """Drop media beyond the size of their template."""
    size_of = _sizes_of([planned[place].template for place in probes], sizes, seed)
    seen: Counter[int] = Counter()
    kept, probe_places, is_probe = list[PlannedMedium](), list[int](), set(probes)
    for place, each in enumerate(planned):
        if place in is_probe:
            seen[each.template] += 1
            if seen[each.template] > size_of[each.template]:
                continue
            probe_places.append(len(kept))
        kept.append(each)
    return kept, probe_places


def _fill_to_sizes(
    planned: list[PlannedMedium], probes: list[int], sizes: tuple[int, ...], seed: int
) -> None:
    """Set the frames of media so that each template has its size."""
    size_of = _sizes_of([planned[place].template for place in probes], sizes, seed)
    places_of: dict[int, list[int]] = {}
    for place in probes:
        places_of.setdefault(planned[place].template, []).append(place)
    rng = np.random.default_rng([seed, 10])
    for template, places in places_of.items():
        more = size_of[template] - len(places)
        frames = 1 + rng.multinomial(more, np.full(len(places), 1 / len(places)))
        for place, count in zip(places, frames.tolist(), strict=True):
            planned[place] = replace(planned[place], frames=count)


# ---------------------------------------------------------------------------------------------- pairs


def _pairs(
    subject_of: NDArray[np.int64], is_gallery: NDArray[np.bool_], protocol: BenchmarkProtocol, rng: Generator
) -> NDArray[np.int64]:
    """(n, 2) templates: all mated pairs and all or a sample of the non-mated pairs, in order."""
    M = len(subject_of)
    if protocol.pairs == "gallery_probe":
        gallery, probes = np.flatnonzero(is_gallery), np.flatnonzero(~is_gallery)
        pairs = np.stack(np.meshgrid(gallery, probes, indexing="ij"), axis=-1).reshape(-1, 2)
    else:
        pairs = np.stack(np.triu_indices(M, 1), axis=-1)
    mated = subject_of[pairs[:, 0]] == subject_of[pairs[:, 1]]
    wanted = protocol.nonmated_pairs
    if not wanted or wanted >= (~mated).sum():
        return pairs
    others = np.flatnonzero(~mated)
    kept = np.sort(np.concatenate([np.flatnonzero(mated), rng.choice(others, wanted, replace=False)]))
    return np.asarray(pairs[kept], np.int64)
