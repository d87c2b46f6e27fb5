"""What a run is assembled from: the flags of the augmentation reach it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from data.sampling.augmentation import Augmentation
from runs.components import RunRequest
from runs.config_rules import resolve
from runtime.errors import InputError

FLAGS = {
    field.name: field.name.removesuffix("_prob") + "_augmentation_prob" for field in fields(Augmentation)
}


def test_every_probability_of_the_augmentation_has_its_flag() -> None:
    probabilities = {name: (1 + at) / 100 for at, name in enumerate(FLAGS)}
    given = {FLAGS[name]: value for name, value in probabilities.items()}
    config = resolve({"train_data_path": "imgs", **given})
    assert vars(RunRequest(config).augmentation()) == probabilities


@pytest.mark.parametrize("flag", FLAGS.values())
def test_augmentation_of_computed_features_is_refused(flag: str) -> None:
    with pytest.raises(InputError, match=f"--{flag}"):
        resolve({"features": "store", flag: 0.1})
