"""validate_ijb.py on whom it judges: aggregators that know these people are refused; scores with a cohort."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreset import build_aggregator
from evaluation.protocols.ijb_layout import read_protocol
from evaluation.reporting.report import read_result
from net import build_backbone
from runtime.errors import InputError, InputWarning
from tests.ijb_layout import Dataset, write_dataset
from validation import ijb as validate_ijb
from validation.subjects import cohort_bank, cohort_of, evaluated_subjects
from weights import TRAINED_SUBJECTS, name_digests

D = 64


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return write_dataset(tmp_path / "sets", images=False)


@pytest.fixture
def features(data: Dataset, tmp_path: Path) -> Path:
    """Of the benchmark's faces: noisy, and leaning to one side by different amounts, as blurred faces do."""
    rng = np.random.default_rng(0)
    subjects = np.array([data.subject_of[template] for _, template, _ in data.faces])
    people = rng.normal(size=(subjects.max() + 1, D))
    rows = people[subjects] + rng.normal(size=(len(subjects), D)) + rng.choice([1, 3], (len(subjects), 1))
    path = tmp_path / "features.npz"
    np.savez(path, embs=rows.astype(np.float32), embs_f=rows.astype(np.float32))
    return path


def write_cohort(path: Path, people: int, size: int = D) -> Path:
    rng = np.random.default_rng(1)
    labels = np.repeat([f"Person_{number}" for number in range(people)], 6)
    rows = rng.normal(size=(len(labels), size)) + rng.choice([1, 3], (len(labels), 1))
    norms = np.linalg.norm(rows, axis=1)
    np.savez(
        path, features=rows / norms[:, None], norms=norms, labels=labels, media=np.arange(len(labels)) // 3
    )
    return path


def run(data: Dataset, out: Path, **flags: Any) -> dict[str, Any]:
    given = {"data_root": str(data.root), "dataset_name": data.name, "out": str(out), "gpus": 0}
    validate_ijb.PROTOCOL.validate(
        given | {name: str(v) if isinstance(v, Path) else v for name, v in flags.items()}
    )
    return read_result(out)


def test_scores_with_a_cohort_are_cosines_over_how_near_both_are_to_it(
    data: Dataset, features: Path, tmp_path: Path
) -> None:
    cohort = write_cohort(tmp_path / "cohort.npz", 24)
    result = run(data, tmp_path / "out", features=features, cohort=cohort, aggregator=["norm_weighted"])
    protocol = read_protocol(data.root, data.name)
    rows = np.load(features)["embs"].astype(np.float64)
    descriptors = []
    for template in range(len(protocol.template_ids)):
        mean = rows[protocol.template_of_face == template].mean(axis=0)
        descriptors.append(mean / np.linalg.norm(mean))
    strangers = cohort_of(cohort_bank(str(cohort), None))
    others = []
    for first, last in zip(strangers.groups.offsets[:-1], strangers.groups.offsets[1:], strict=True):
        mine = strangers.groups.rows[first:last]
        mean = (strangers.features[mine] * strangers.norms[mine, None]).mean(axis=0)
        others.append(mean / np.linalg.norm(mean))
    nearness = np.sort(np.array(descriptors) @ np.array(others).T, axis=1)[:, -len(others) // 2 :].mean(
        axis=1
    )
    scores = np.array(
        [
            descriptors[a] @ descriptors[b] / np.sqrt(nearness[a] * nearness[b])
            for a, b in zip(protocol.pairs.first, protocol.pairs.second, strict=True)
        ]
    )
    mated = protocol.pairs.is_mated
    for far in (1e-2, 1e-1):
        allowed = min(t for t in np.nextafter(scores, np.inf) if np.mean(scores[~mated] >= t) <= far)
        found = result["verification"]["tar_at_far"][f"{far:.0e}"]
        assert found["strict"] == pytest.approx(np.mean(scores[mated] >= allowed))
        assert found["threshold"] == pytest.approx(allowed, rel=1e-5)
    assert result["protocol"]["rules"]["cohort"] == f"96 templates of 24 subjects of {cohort}"
    assert result["protocol"]["rules"]["score_normalisation"] == "local_scaling"
    other = run(data, tmp_path / "as", features=features, cohort=cohort, score_normalisation="as_norm")
    assert other["protocol"]["rules"]["score_normalisation"] == "as_norm"
    assert other["verification"] != result["verification"]
    plain = run(data, tmp_path / "plain", features=features, aggregator=["norm_weighted"])
    assert plain["verification"] != result["verification"]
    assert any("does not name its subjects" in warning for warning in result["warnings"])
    with_media = run(data, tmp_path / "media", features=features, cohort=cohort, protocol="adaface")
    assert with_media["verification"] != result["verification"]


def test_people_of_the_benchmark_are_not_in_the_cohort(tmp_path: Path) -> None:
    cohort = str(write_cohort(tmp_path / "cohort.npz", 24))
    assert cohort_bank(cohort, frozenset({"Person_3", "Nobody"})).subjects == sorted(
        f"Person_{number}" for number in range(24) if number != 3
    )
    with pytest.raises(InputError, match=r"--cohort .*19 subjects.*20"):
        cohort_bank(cohort, frozenset(f"Person_{number}" for number in range(5)))


def test_a_cohort_of_another_backbone_is_refused(data: Dataset, features: Path, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort.npz", 24, size=32)
    with pytest.raises(InputError, match=r"--cohort .*32 values.*64"):
        run(data, tmp_path / "out", features=features, cohort=cohort)
    with pytest.raises(InputError, match=r"--cohort .*: no such file"):
        run(data, tmp_path / "out", features=features, cohort=tmp_path / "none.npz")
    both = {"features": features, "cohort": write_cohort(tmp_path / "c.npz", 24)}
    for scored in ({"protocol": "insightface"}, {"aggregator": ["norm_weighted"], "quality": "detector"}):
        with pytest.raises(InputError, match="the cohort's faces have none"):
            run(data, tmp_path / "out", **both, **scored)


def trained_with(path: Path, names: list[str]) -> Path:
    options = {"embedding_size": D, "coreset_size": 2}
    aggregator = build_aggregator("coreset", options)
    torch.save(
        {
            "state_dict": {f"aggregator.{key}": value for key, value in aggregator.state_dict().items()},
            "backbone_spec": build_backbone("ir_tiny").spec.to_dict(),
            "aggregator_name": "coreset",
            "aggregator_options": options,
            TRAINED_SUBJECTS: " ".join(name_digests(names)),
        },
        path,
    )
    return path


def test_an_aggregator_that_knows_the_judged_people_is_refused(
    data: Dataset, features: Path, tmp_path: Path
) -> None:
    path = trained_with(tmp_path / "known.ckpt", ["Ann", "Bob", "17"])
    flags = {"features": features, "aggregator": ["coreset"], "aggregator_weights": [str(path)]}
    run(data, tmp_path / "nothing_known", **flags)
    judged = tmp_path / "judged.txt"
    judged.write_text("Bob\nEve\n17\n")
    with pytest.raises(InputError, match=r"trained on 1 of the 3 subjects of TINY \(Bob\)"):
        run(data, tmp_path / "out", evaluated_subjects=judged, **flags)
    # The list that a benchmark of ours carries counts without a flag; a file of the user's goes before it.
    data.meta("subjects.csv").write_text('SUBJECT_ID,NAME\n1,"Ann"\n2,17\n')
    with pytest.raises(InputError, match=r"trained on 1 of the 2 subjects of TINY \(Ann\)"):
        run(data, tmp_path / "out", **flags)
    judged.write_text("Eve\n17\n")
    run(data, tmp_path / "others", evaluated_subjects=judged, **flags)
    data.meta("subjects.csv").write_text("nothing\nx\n")
    with pytest.raises(InputError, match=r"subjects\.csv, line 1: expected a header with SUBJECT_ID, NAME"):
        run(data, tmp_path / "out", **flags)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_people_are_known_in_every_unicode_form(
    data: Dataset, features: Path, tmp_path: Path, old: bool, form: str
) -> None:
    trained, judged = (unicodedata.normalize(each, "José") for each in ("NFD" if old else form, "NFC"))
    path = trained_with(tmp_path / "known.ckpt", [trained])
    if old:
        # Digests of names as the folder had them.
        content = torch.load(path, weights_only=True)
        content[TRAINED_SUBJECTS] = hashlib.blake2b(trained.encode(), digest_size=6).hexdigest()
        torch.save(content, path)
    (tmp_path / "judged.txt").write_text(unicodedata.normalize(form, judged), encoding="utf-8")
    flags = {"features": features, "aggregator": ["coreset"], "aggregator_weights": [str(path)]}
    with pytest.raises(InputError, match="trained on 1 of the 1 subjects of TINY"):
        run(data, tmp_path / "out", evaluated_subjects=tmp_path / "judged.txt", **flags)


def test_a_list_that_names_nobody_of_the_benchmark_is_refused(
    data: Dataset, features: Path, tmp_path: Path
) -> None:
    data.meta("subjects.csv").write_text("SUBJECT_ID,NAME\n1,Ann\n2,Bob\n")
    (tmp_path / "judged.txt").write_text("ann\nbob\n")
    with pytest.raises(InputError, match=r"judged\.txt: none of its 2 names .*ann and Ann"):
        run(data, tmp_path / "out", features=features, evaluated_subjects=tmp_path / "judged.txt")


def test_names_that_are_nobody_of_the_benchmark_are_said(data: Dataset, tmp_path: Path) -> None:
    data.meta("subjects.csv").write_text("SUBJECT_ID,NAME\n1,Ann\n2,Bob\n")
    judged = tmp_path / "judged.txt"
    judged.write_text("ann\nBob\n")
    with pytest.warns(InputWarning, match=r"judged\.txt: 1 .*1 names .*ann and Ann"):
        assert evaluated_subjects(read_protocol(data.root, data.name), str(judged)) == {"ann", "Bob"}


def test_a_cohort_is_without_the_judged_in_every_unicode_form(tmp_path: Path) -> None:
    path = write_cohort(tmp_path / "cohort.npz", 25)
    content = dict(np.load(path))
    content["labels"] = np.array([unicodedata.normalize("NFD", f"é{name}") for name in content["labels"]])
    np.savez(path, **content)
    bank = cohort_bank(str(path), frozenset({"éPerson_3"}))
    assert len(bank.subjects) == 24
