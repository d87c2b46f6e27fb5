"""Names of people: the same in every Unicode form, different in upper and lower case."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data.sources.fingerprint import data_parts
from data.sources.subject_names import check_distinct, match_names, read_names, same_names, unknown_names
from data.sources.subsets import hold_out, kept_subjects
from features.bank import FeatureBank
from runtime.errors import InputError
from tests.data.sources.test_subsets import NamedFaces
from weights import name_digests

PEOPLE = ["José_0", "Zoë", "Ann", "Łukasz Żak"]
FORMS = ("NFC", "NFD")


def written(form: str) -> list[str]:
    return [unicodedata.normalize(form, name) for name in PEOPLE]


@pytest.mark.parametrize("of_list", FORMS)
@pytest.mark.parametrize("of_data", FORMS)
def test_unicode_forms_are_the_same_name(of_list: str, of_data: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(written(of_list)), encoding="utf-8")
    subjects = [*written(of_data), "Bob"]
    matches = match_names(read_names(path), subjects, "--flag", "data")
    assert matches.subjects == frozenset(written(of_data))
    assert matches.unknown == ()
    assert same_names(subjects, written(of_list)) == sorted(written(of_data))
    kept, sentence = kept_subjects("data", [*subjects, "Eve"], str(path))
    assert kept == ["Bob", "Eve"]
    assert sentence.startswith("4 subjects are excluded, of 4 names")


def test_digests_of_checkpoints_are_of_the_composed_form() -> None:
    assert name_digests(written("NFD")).keys() == name_digests(written("NFC")).keys()
    # What checkpoints of before hold for names without accents.
    assert list(name_digests(["Ann"])) == [hashlib.blake2b(b"Ann", digest_size=6).hexdigest()]


def test_list_without_matches_is_refused_with_a_hint_at_case(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("ANN\nzoë\n", encoding="utf-8")
    with pytest.raises(InputError) as fault:
        match_names(read_names(path), PEOPLE, f"--exclude_subjects {path}", "faces")
    for fact in ("names.txt", "none of its 2 names", "4 subjects of faces", "ANN and Ann", "zoë and Zoë"):
        assert fact in str(fault.value)


def test_names_without_a_subject_are_reported() -> None:
    matches = match_names({"Ann", "zoë", "Nobody"}, PEOPLE, "--flag", "data")
    assert matches.subjects == {"Ann"}
    said = unknown_names(matches, PEOPLE)
    for fact in ("2 names match no subject", "Nobody", "zoë and Zoë"):
        assert fact in said


def test_two_forms_of_one_name_in_a_folder_are_one_subject() -> None:
    with pytest.raises(InputError, match="José_0"):
        check_distinct([*written("NFC"), *written("NFD")], "faces")
    check_distinct(written("NFD"), "faces")


def test_held_out_subjects_do_not_depend_on_the_form() -> None:
    drawn = []
    for form in FORMS:
        names = [unicodedata.normalize(form, f"é{number}") for number in range(40)]
        _, held_out = hold_out(NamedFaces(dict.fromkeys(names, 3)), 0.3, seed=1)
        drawn.append([unicodedata.normalize("NFC", name) for name in held_out.subjects])
    assert drawn[0] == drawn[1]


def test_other_subjects_of_a_bank(tmp_path: Path) -> None:
    names = written("NFD")
    bank = FeatureBank.__new__(FeatureBank)
    object.__setattr__(bank, "subjects", names)
    assert bank.other_subjects(frozenset(written("NFC")[:2])) == names[2:]


def test_fingerprint_of_subjects_is_that_of_their_names() -> None:
    parts = [data_parts(written(form), np.arange(4), np.arange(4).astype(np.uint64)) for form in FORMS]
    assert parts[0] == parts[1]
