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
    return _Planner(pool, protocol, seed, media_of).plan()


@dataclass(frozen=True)
class _Planner:
    """`media_of`: the media of each subject, as indices into `pool.media`."""

    pool: MediaPool
    protocol: BenchmarkProtocol
    seed: int
    media_of: dict[int, list[int]]

    def plan(self) -> BenchmarkPlan:
        names, protocol = self.pool.subjects, self.protocol
        able = [subject for subject in sorted(self.media_of) if self._suffices(self.media_of[subject])]
        order = self._rng(1).permutation(able).tolist() if able else []
        if protocol.subjects:
            order = order[: protocol.subjects]
        taken = sorted(self._without_impostor_subjects(order))
        if len(taken) < 2:
            raise InputError(self._too_few(len(able)))
        templates = [(place, media) for place, s in enumerate(taken) for media in self._templates_of(s)]
        subject_of = np.array([place for place, _ in templates], np.int64)
        is_gallery = np.diff(subject_of, prepend=-1) > 0
        planned = [
            PlannedMedium(template, shown) for template, (_, media) in enumerate(templates) for shown in media
        ]
        return BenchmarkPlan(
            subjects=[names[subject] for subject in taken],
            subject_of=subject_of,
            is_gallery=is_gallery,
            gallery_of=np.arange(len(taken)) % 2,
            media=self._stressed(planned, is_gallery),
            pairs=self._pairs(subject_of, is_gallery),
            too_few=len(names) - len(able),
        )

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose])

    # ---------------------------------------------------------------------------------------- templates

    def _suffices(self, media: list[int]) -> bool:
        stills = sum(not self.pool.media[number].is_clip for number in media)
        enough_stills = self.protocol.gallery_kind == "any" or stills >= self.protocol.gallery_media[0]
        return len(media) >= self.protocol.min_media and enough_stills

    def _templates_of(self, subject: int) -> list[list[int]]:
        """Disjoint media of the gallery template and of each probe template."""
        media, protocol = self.media_of[subject], self.protocol
        # Seeded by the subject's name, so that its templates do not depend on other subjects.
        name = self.pool.subjects[subject].encode(errors="surrogateescape")
        rng = self._rng(2, int.from_bytes(hashlib.sha256(name).digest()[:8], "little"))
        left = rng.permutation(media).tolist()
        wanted = int(rng.integers(protocol.templates[0], protocol.templates[1] + 1))
        # Media that the minimum number of templates does not need.
        spare = len(media) - protocol.min_media
        least, most = protocol.gallery_media
        size = min(int(rng.integers(least, most + 1)), least + spare)
        any_kind = protocol.gallery_kind == "any"
        fitting = [m for m in left if any_kind or not self.pool.media[m].is_clip][:size]
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

    def _too_few(self, able: int) -> str:
        protocol = self.protocol
        counts = Counter(len(media) for media in self.media_of.values())
        most = ", ".join(f"{number} of {count}" for count, number in sorted(counts.items(), reverse=True)[:5])
        stills = ", including stills," if protocol.gallery_kind == "stills" else ""
        impostors = ", and further subjects for impostor media" if protocol.stress.foreign else ""
        return (
            f"{able} of {len(self.pool.subjects):,} subjects have the {protocol.min_media} media{stills} "
            f"that protocol {protocol.name} needs; expected 2 or more{impostors}. Media per subject: "
            f"{most or 'none'}. Lower 'templates' or 'probe_media' in the protocol, or add images."
        )

    # ------------------------------------------------------------------------------------------- stress

    def _without_impostor_subjects(self, order: list[int]) -> list[int]:
        """Remove subjects until the others provide enough impostor media.

        Subjects of impostor media have no templates, or the same image could be on both sides of a pair.
        """
        if not self.protocol.stress.foreign:
            return order
        order = list(order)
        probes = {subject: sum(map(len, self._templates_of(subject)[1:])) for subject in order}
        needed = sum(probes.values())
        impostors = sum(len(media) for subject, media in self.media_of.items() if subject not in probes)
        while len(order) > 2 and impostors < round(self.protocol.stress.foreign * needed):
            subject = order.pop()
            impostors += len(self.media_of[subject])
            needed -= probes[subject]
        return order

    def _stressed(self, planned: list[PlannedMedium], is_gallery: NDArray[np.bool_]) -> list[PlannedMedium]:
        """Apply the stress of the protocol to probe media."""
        stress, media = self.protocol.stress, self.pool.media
        in_use = {each.shown for each in planned}
        size_of: dict[int, int] = {}
        if sizes := stress.template_sizes:
            templates = sorted({each.template for each in planned if not is_gallery[each.template]})
            order = self._rng(9).permutation(templates).tolist()
            size_of = {template: sizes[place % len(sizes)] for place, template in enumerate(order)}
            planned = _cut_to_sizes(planned, size_of)
        probes = [place for place, each in enumerate(planned) if not is_gallery[each.template]]
        shown_subjects = {media[planned[place].shown].subject for place in probes}
        free = [n for n in range(len(media)) if n not in in_use and media[n].subject not in shown_subjects]
        for place, shown in self._impostor_media(planned, probes, free):
            planned[place] = replace(planned[place], shown=shown, is_impostor=True)
        for place in self._share(probes, stress.degraded, 5):
            planned[place] = replace(planned[place], is_degraded=True)
        rng = self._rng(6)
        low, high = self.protocol.clip_frames
        for place, each in enumerate(planned):
            medium = media[each.shown]
            frames = min(len(medium.frames), int(rng.integers(low, high + 1))) if medium.is_clip else 1
            planned[place] = replace(each, frames=frames)
        stills = [place for place in probes if not media[planned[place].shown].is_clip]
        for place in self._share(stills, stress.simulated_clips, 7):
            planned[place] = replace(planned[place], frames=int(rng.integers(low, high + 1)))
        if size_of:
            self._fill_to_sizes(planned, probes, size_of)
        for place in self._share(probes, stress.repeated, 8):
            times = int(rng.integers(stress.repeats[0], stress.repeats[1] + 1))
            planned[place] = replace(planned[place], times=times)
        return planned

    def _share(self, places: list[int], share: float, purpose: int) -> list[int]:
        """A random fraction of `places`, sorted."""
        chosen = self._rng(purpose).permutation(places)[: round(share * len(places))]
        return sorted(chosen.tolist())

    def _impostor_media(
        self, planned: list[PlannedMedium], probes: list[int], impostors: list[int]
    ) -> list[tuple[int, int]]:
        """Indices of media to replace, and the impostor media of the pool; less than half of any template."""
        share = self.protocol.stress.foreign
        wanted = round(share * len(probes))
        if not wanted:
            return []
        rng = self._rng(4)
        sizes = Counter(planned[place].template for place in probes)
        remaining = {template: (size - 1) // 2 for template, size in sizes.items()}
        possible = sum(remaining.values())
        if wanted > min(possible, len(impostors)):
            raise InputError(
                f"stress: foreign {share:g} of {len(probes):,} probe media requires {wanted:,} impostor "
                f"media; {possible:,} are possible with less than half of each template, and "
                f"{len(impostors):,} are available. Lower 'foreign', raise 'probe_media', or add subjects."
            )
        chosen: list[int] = []
        for place in rng.permutation(probes).tolist():
            if len(chosen) < wanted and remaining[planned[place].template]:
                remaining[planned[place].template] -= 1
                chosen.append(place)
        shown = rng.permutation(impostors)[:wanted].tolist()
        return list(zip(sorted(chosen), shown, strict=True))

    def _fill_to_sizes(
        self, planned: list[PlannedMedium], probes: list[int], size_of: dict[int, int]
    ) -> None:
        """Set the frames of media so that each template has its size."""
        places_of: dict[int, list[int]] = {}
        for place in probes:
            places_of.setdefault(planned[place].template, []).append(place)
        rng = self._rng(10)
        for template, places in places_of.items():
            more = size_of[template] - len(places)
            frames = 1 + rng.multinomial(more, np.full(len(places), 1 / len(places)))
            for place, count in zip(places, frames.tolist(), strict=True):
                planned[place] = replace(planned[place], frames=count)

    # -------------------------------------------------------------------------------------------- pairs

    def _pairs(self, subject_of: NDArray[np.int64], is_gallery: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(n, 2) templates: all mated pairs and all or a sample of the non-mated pairs, in order."""
        if self.protocol.pairs == "gallery_probe":
            gallery, probes = np.flatnonzero(is_gallery), np.flatnonzero(~is_gallery)
            pairs = np.stack(np.meshgrid(gallery, probes, indexing="ij"), axis=-1).reshape(-1, 2)
        else:
            pairs = np.stack(np.triu_indices(len(subject_of), 1), axis=-1)
        mated = subject_of[pairs[:, 0]] == subject_of[pairs[:, 1]]
        wanted = self.protocol.nonmated_pairs
        if not wanted or wanted >= (~mated).sum():
            return pairs
        others = self._rng(3).choice(np.flatnonzero(~mated), wanted, replace=False)
        kept = np.sort(np.concatenate([np.flatnonzero(mated), others]))
        return np.asarray(pairs[kept], np.int64)


def _cut_to_sizes(planned: list[PlannedMedium], size_of: dict[int, int]) -> list[PlannedMedium]:
    """Drop media beyond the size of their template; templates without a size keep all."""
    seen: Counter[int] = Counter()
    kept = []
    for each in planned:
        seen[each.template] += 1
        if seen[each.template] <= size_of.get(each.template, len(planned)):
            kept.append(each)
    return kept
