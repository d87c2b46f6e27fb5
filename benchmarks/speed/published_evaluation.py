"""The published evaluation, re-created in plain code for comparison.

Loops over templates, gathers pair by pair and sorts every row, as the published code does; that code is
neither copied nor imported.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn.preprocessing
import torch
from aggregation import OneSetAtATime
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_curve

from coreset.aggregator import CoresetAggregator

Array = NDArray[Any]


def read_pairs(path: Path) -> tuple[Array, Array, Array]:
    """First and second template and label, as pandas gives them."""
    table = pd.read_csv(path, sep=" ", header=None).values
    return table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2].astype(int)


def read_faces(path: Path) -> tuple[Array, Array]:
    """Templates and media of face_tid_mid.txt."""
    table = np.loadtxt(path, dtype=str)
    return table[:, 1].astype(int), table[:, 2].astype(int)


def read_lists(paths: Sequence[Path]) -> list[tuple[Array, Array]]:
    """Templates and subjects of the 1:N lists, one row per template, in rising order."""
    lists = []
    for path in paths:
        table = np.loadtxt(path, dtype=str, skiprows=1, delimiter=",")
        templates, first = np.unique(table[:, 0].astype(int), return_index=True)
        lists.append((templates, table[first, 1].astype(int)))
    return lists


def aggregate(
    ours: CoresetAggregator, features: Array, norms: Array, templates: Array, media: Array
) -> Array:
    """One template at a time, with gradients kept, as published."""
    torch.manual_seed(0)
    model = OneSetAtATime(ours).eval()
    unique = np.unique(templates)
    found = np.zeros((len(unique), features.shape[1]))
    for row, template in enumerate(unique):
        (faces,) = np.where(templates == template)
        # The published code looks for media here too, and does not use them.
        np.unique(media[faces], return_counts=True)
        descriptor = model(torch.Tensor(features[faces]), torch.Tensor(norms[faces]))
        found[row] = descriptor.detach()
    return np.asarray(sklearn.preprocessing.normalize(found))


def media_mean(features: Array, norms: Array, templates: Array, media: Array) -> Array:
    """The mean of each medium, then their sum, in loops; `features` (N, D) unit."""
    faces = features * norms[:, None]
    unique = np.unique(templates)
    found = np.zeros((len(unique), faces.shape[1]))
    for row, template in enumerate(unique):
        (own,) = np.where(templates == template)
        own_faces, own_media = faces[own], media[own]
        means = []
        for medium, count in zip(*np.unique(own_media, return_counts=True), strict=True):
            (frames,) = np.where(own_media == medium)
            one = own_faces[frames]
            means.append(one if count == 1 else np.mean(one, axis=0, keepdims=True))
        found[row] = np.sum(np.array(means), axis=0)
    return np.asarray(sklearn.preprocessing.normalize(found))


def pair_scores(
    descriptors: Array, unique: Array, first: Array, second: Array, at_once: int, as_list: bool
) -> Array:
    """Gathered in float64: 100,000 pairs at once as published; 10,000 and a list as InsightFace does it."""
    row_of = np.zeros((max(unique) + 1, 1), dtype=int)
    for row, template in enumerate(unique):
        row_of[template] = row
    if as_list:
        scores: list[float] = []
        for start in range(0, len(first), at_once):
            left = descriptors[row_of[first[start : start + at_once], 0]]
            right = descriptors[row_of[second[start : start + at_once], 0]]
            scores.extend((left * right).sum(-1))
        return np.array(scores)
    found = np.zeros(len(first))
    every = np.array(range(len(first)))
    for start in range(0, len(first), at_once):
        batch = every[start : start + at_once]
        left, right = descriptors[row_of[first[batch]]], descriptors[row_of[second[batch]]]
        found[batch] = np.sum(left * right, -1).flatten()
    return found


def tar_at_fars(scores: Array, labels: Array, fars: Sequence[float]) -> list[float]:
    """The kept point of scikit-learn's curve that is nearest to each FAR."""
    fpr, tpr, _ = roc_curve(labels, scores)
    auc(fpr, tpr)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    return [float(tpr[min(list(zip(abs(fpr - far), range(len(fpr)), strict=True)))[1]]) for far in fars]


def identify(probes: Array, probe_subjects: Array, gallery: Array, gallery_subjects: Array) -> list[float]:
    """The published helper: both galleries joined, every row sorted; rank 1, 5, 10, then its two 'FAR'."""
    places = []
    for subject in probe_subjects:
        found = [place for place, other in enumerate(gallery_subjects) if subject == other]
        places.append(found[0])
    similarity = np.dot(probes, gallery.T)
    top = np.argsort(-similarity)
    count = len(probes)
    rates = [sum(places[row] in top[row, :rank] for row in range(count)) / count for rank in (1, 5, 10)]
    rest, mated = similarity.copy(), []
    for row in range(count):
        mated.append(rest[row, places[row]])
        rest[row, places[row]] = -2.0
    needed = [math.ceil(count * far) for far in (0.01, 0.1)]
    largest = heapq.nlargest(max(needed), rest[np.where(rest > -2.0)])
    return rates + [float(np.sum(np.array(mated) > largest[place - 1]) / count) for place in needed]


def insightface_identify(
    probes: Array, probe_subjects: Array, gallery: Array, gallery_subjects: Array
) -> list[float]:
    """InsightFace's `evaluation_1N` on one gallery: rank 1, 5, 10 of mated probes, TPIR at FPIR 0.01, 0.1."""
    similarity = np.dot(probes, gallery.T)
    hits, mated, others, nonmated = [0, 0, 0], [], [], []
    for row, subject in enumerate(probe_subjects):
        if subject not in gallery_subjects:
            nonmated.append(similarity[row])
            continue
        own = gallery_subjects == subject
        place = np.argwhere(own)[0, 0]
        order = np.argsort(similarity[row])[::-1]
        hits = [hit + (place in order[:rank]) for hit, rank in zip(hits, (1, 5, 10), strict=True)]
        mated.append(similarity[row][own][0])
        others.append(similarity[row][~own])
    own_scores, best_other = np.array(mated), np.array(others).max(1)
    best = np.sort(np.array(nonmated).max(1))[::-1]
    rates = [hit / len(mated) for hit in hits]
    for fpir in (0.01, 0.1):
        threshold = best[math.ceil(len(nonmated) * fpir) - 1]
        rates.append(float(np.sum((own_scores > threshold) & (own_scores > best_other)) / len(mated)))
    return rates
