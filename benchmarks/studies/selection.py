"""Ablation of the coreset selection: temperature, noise, masking, K, gamma, norm code, attention.

python benchmarks/studies/selection.py --features STORE --data_root DATA --dataset_name LFWS \
    --evaluation_features FEATURES --evaluated_subjects SUBJECTS.txt --out experiments/selection
    trains each variant of the published aggregator with each seed under --preset good, and writes the table
python benchmarks/studies/selection.py --train FLAGS_OF_MAIN
    one training run, with the variants in the registry of aggregators

Each row varies one property of the published aggregator (K = 3, arXiv 2308.14075). Rows, evaluation and
tables are those of benchmarks/studies/baselines.py, with two more columns: the fraction of training picks
that evaluation selects too, and the fraction of picks that repeat a face.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.studies.baselines import Baseline, compare, flags
from coreset.aggregator import CoresetAggregator
from coreset.catalogue import AggregatorEntry
from coreset.registry import register_aggregator
from coreset.selection import SMALLEST_NORM, Sampling, Selection, select_faces
from runtime.command import run_command
from runtime.errors import InputError

_CHOICES = ("farthest", "largest_norm", "random")
_VARIANT = "coreset_variant"


class EqualisedSampling(Sampling):
    """Sampling whose scores have mean 0 and deviation 1 over the available faces of each template.

    The temperature then means the same for the first pick, of norms, and for later ones.
    """

    def logits(self, scores: Tensor, available: Tensor) -> Tensor:
        """See the base class."""
        count = available.sum(dim=1, keepdim=True)
        centred = scores - scores.masked_fill(~available, 0).sum(dim=1, keepdim=True) / count
        variance = centred.masked_fill(~available, 0).square().sum(dim=1, keepdim=True) / count
        # Where all scores are equal the root would have no finite gradient.
        return super().logits(centred / (variance + SMALLEST_NORM).sqrt(), available)


class CoresetVariant(CoresetAggregator):
    """The published aggregator with another choice of faces, another norm code, or without attention.

    `choice`: farthest points, the largest norms, or random faces (the same in every evaluation).
    `equal_scores`: scores in training are standardised over the faces of their template before noise is
    added. `smooth_code`: the norm code is linear in the norm's logarithm and its square.
    `attends`: False returns the mean of the picks.

    Raises:
        InputError: an unknown choice, or as `CoresetAggregator`.
    """

    def __init__(
        self,
        *,
        embedding_size: int,
        coreset_size: int = 3,
        gamma: float = 0.01,
        learn_gamma: bool = True,
        selection_temperature: float = 1.0,
        learn_temperature: bool = False,
        gumbel_noise: bool = True,
        mask_picked: bool = True,
        choice: str = "farthest",
        equal_scores: bool = False,
        smooth_code: bool = False,
        attends: bool = True,
        quality: str = "norm",
    ) -> None:
        super().__init__(
            embedding_size=embedding_size,
            coreset_size=coreset_size,
            gamma=gamma,
            learn_gamma=learn_gamma,
            selection_temperature=selection_temperature,
            learn_temperature=learn_temperature,
            gumbel_noise=gumbel_noise,
            mask_picked=mask_picked,
            quality=quality,
        )
        if choice not in _CHOICES:
            raise InputError(f"{_VARIANT}: choice {choice!r}: expected {', '.join(_CHOICES)}.")
        self.choice = choice
        self.equal_scores = equal_scores
        self.attends = attends
        self.smooth_code = nn.Linear(2, embedding_size) if smooth_code else None

    def _select(
        self, features: Tensor, norms: Tensor, mask: Tensor | None, *, coreset_size: int, training: bool
    ) -> Selection:
        if self.choice == "farthest":
            sampling = None
            if training:
                kind = EqualisedSampling if self.equal_scores else Sampling
                sampling = kind(self.temperature, self.gumbel_noise, self.mask_picked)
            return select_faces(
                features, norms, mask, coreset_size=coreset_size, gamma=self.gamma, sampling=sampling
            )
        mask = torch.ones_like(norms, dtype=torch.bool) if mask is None else mask
        if self.choice == "random":
            # By the face's own values, so that evaluation does not depend on the order; anew in training.
            scores = torch.rand_like(norms) if training else (norms * 1e4).frac()
        else:
            scores = norms
        picks = scores.masked_fill(~mask, -torch.inf).topk(min(coreset_size, norms.shape[1]), dim=1).indices
        picks = F.pad(picks, (0, coreset_size - picks.shape[1]))
        present = torch.arange(coreset_size) < mask.sum(dim=1, keepdim=True)
        faces = features * norms.unsqueeze(2)
        core = faces.gather(1, picks.unsqueeze(2).expand(-1, -1, faces.shape[2]))
        return Selection(picks.masked_fill(~present, -1), core.masked_fill(~present.unsqueeze(2), 0), present)

    def _norm_code(self, norms: Tensor) -> Tensor:
        if self.smooth_code is None:
            return super()._norm_code(norms)
        logs = norms.clamp_min(1e-3).log()
        code: Tensor = self.norm_code_scale(self.smooth_code(torch.stack([logs, logs.square()], dim=-1)))
        return code

    def _padded(
        self, features: Tensor, norms: Tensor, mask: Tensor | None, coreset_size: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.attends:
            return super()._padded(features, norms, mask, coreset_size)
        picks, core, present = self._select(
            features, norms, mask, coreset_size=coreset_size or self.coreset_size, training=self.training
        )
        count = present.sum(dim=1, keepdim=True)
        shares = F.one_hot(picks.clamp_min(0), norms.shape[1]) * present.unsqueeze(2)
        return core.sum(dim=1) / count, picks, None if self.training else shares.sum(dim=1) / count


def _variant(**options: object) -> Baseline:
    return Baseline(_VARIANT, options=options)


VARIANTS = {
    # What the package does without a flag: masking, temperature 1, gamma learned from 0.01, the sinusoid.
    "as it is": Baseline("coreset"),
    "picked faces not masked (published)": Baseline("coreset", options={"mask_picked": False}),
    "temperature 1 to 0.01": Baseline("coreset", flags={"selection_temperature_end": 0.01}),
    "temperature 0.05": Baseline("coreset", flags={"selection_temperature": 0.05}),
    "temperature learned": Baseline("coreset", flags={"learn_temperature": None}),
    "argmax, no noise": Baseline("coreset", options={"gumbel_noise": False}),
    "scores equalised": _variant(equal_scores=True),
    "random K": _variant(choice="random"),
    "top K by norm": _variant(choice="largest_norm"),
    **{f"K = {number}": Baseline("coreset", flags={"coreset_size": number}) for number in (1, 2, 5, 7)},
    **{f"gamma fixed at {gamma:g}": Baseline("coreset", flags={"gamma": gamma}) for gamma in (0, 1)},
    "gamma learned from 1": Baseline("coreset", options={"gamma": 1.0}),
    "smooth norm code": _variant(smooth_code=True),
    "argmax, gamma 1, smooth": _variant(gumbel_noise=False, gamma=1.0, smooth_code=True),
    "no attention": _variant(attends=False),
    "attention over all faces": Baseline("set_transformer", options={"inducing_points": 0}),
    "weighted coreset": Baseline("weighted_coreset"),
}


def main() -> int:
    """Run the command and return its exit code."""
    register_aggregator(_VARIANT, CoresetVariant, AggregatorEntry("a variant", is_trained=True))
    if sys.argv[1:2] == ["--train"]:
        # After the variant is known: the choices of --aggregator are read when the flags are made.
        from main import main as train

        del sys.argv[1]
        return train()
    parser = flags(__doc__, VARIANTS, "as it is")
    parser.set_defaults(out=Path("experiments/selection"))
    args = parser.parse_args()
    return run_command(
        lambda: compare(args, VARIANTS, ("benchmarks/studies/selection.py", "--train"), "selection")
    )


if __name__ == "__main__":
    sys.exit(main())
