"""The table of baselines: trained by the command itself, evaluation_set, resumed; its arithmetic; what it
refuses."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import main
from benchmarks.studies import baselines as baselines
from benchmarks.studies.evaluator import Evaluator, duplicate_share, read_evaluation_set
from benchmarks.studies.tables import FARS, Row, difference, write_tables
from coreset import AGGREGATORS, build_aggregator
from evaluation.metrics.score_normalisation import METHODS
from evaluation.metrics.verification import rate_key
from runs.config_rules import resolve
from runtime.errors import InputError
from tests.ijb_layout import Dataset, write_dataset

D = 16


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "sets", subjects=10, images=False)


def unit_rows(rng: np.random.Generator, centres: np.ndarray, noise: float) -> np.ndarray:
    rows = centres + noise * rng.standard_normal(centres.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def args(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Flags of a comparison of seconds: features of subjects that are known apart by them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    rng = np.random.default_rng(0)
    labels = np.repeat([f"trained_{number}" for number in range(20)], 6)
    centres = np.repeat(rng.standard_normal((20, D)), 6, axis=0)
    np.savez(
        tmp_path / "train.npz",
        features=unit_rows(rng, centres, 0.5),
        norms=rng.uniform(5, 20, 120).astype(np.float32),
        labels=labels,
    )
    evaluation_set = tmp_path / "evaluation"
    evaluation_set.mkdir()
    of_subject = {subject: rng.standard_normal(D) for subject in set(data.subject_of.values())}
    faces = np.stack([of_subject[data.subject_of[template]] for _, template, _ in data.faces])
    np.save(evaluation_set / "features.npy", unit_rows(rng, faces, 1.0))
    np.save(evaluation_set / "norms.npy", rng.uniform(5, 20, len(faces)).astype(np.float32))
    (tmp_path / "subjects.txt").write_text("evaluated_1\nevaluated_2\n")
    given = {
        "features": tmp_path / "train.npz",
        "data_root": data.root,
        "dataset_name": data.name,
        "evaluation_features": evaluation_set,
        "evaluated_subjects": tmp_path / "subjects.txt",
        "out": tmp_path / "out",
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    words += ["--steps", "4", "--epochs", "2", "--batch_size", "8", "--replicates", "50", "--seeds", "3"]
    return baselines.flags("", baselines.BASELINES, "coreset").parse_args(words)


@pytest.mark.slow
def test_two_are_trained_evaluated_and_not_made_again(
    args: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    args.aggregators, args.reference = ["learned_map", "mean"], "nan"
    baselines.compare(args, baselines.BASELINES)
    table = (args.out / "baselines.md").read_text()
    assert "| nan" in table
    assert "reference" in table
    assert "--aggregator learned_map --seed 3" in table
    with (args.out / "baselines.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [line["aggregator"] for line in lines] == ["nan", "learned_map", "mean"]
    assert all(0 <= float(line[f"tar_at_far_{rate_key(far)}"]) <= 1 for line in lines for far in FARS)
    assert float(lines[0]["train_cpu_seconds"]) > 0
    assert int(lines[1]["parameters"]) == 2 * D * 384 + 384 + D + 1
    rows = {path.name: path.stat().st_mtime_ns for path in (args.out / "rows").iterdir()}
    assert set(rows) == {"nan-seed3.json", "learned_map-seed3.json", "mean-seed0.json"}
    (args.out / "baselines.md").unlink()
    (args.out / "rows" / "mean-seed0.json").unlink()
    baselines.compare(args, baselines.BASELINES)
    again = {path.name: path.stat().st_mtime_ns for path in (args.out / "rows").iterdir()}
    assert {name for name in rows if again[name] != rows[name]} == {"mean-seed0.json"}
    # But for the line of what was evaluated again: its speed is measured anew.
    assert [
        line for line in (args.out / "baselines.md").read_text().splitlines() if "| mean" not in line
    ] == [line for line in table.splitlines() if "| mean" not in line]


def test_what_a_stopped_training_left_stays_and_is_not_evaluated(args: Namespace, tmp_path: Path) -> None:
    runs = args.out / "runs" / "nan-seed3"
    for name in ("run_2", "run_9"):
        (runs / name).mkdir(parents=True)
        (runs / name / "last.ckpt").write_text("stopped")
    trainer = tmp_path / "trainer.py"
    trainer.write_text(
        "import sys\nfrom pathlib import Path\n"
        "folder = Path(sys.argv[sys.argv.index('--out') + 1]) / 'run_10'\n"
        "folder.mkdir()\n(folder / 'last.ckpt').write_text('done')\n"
    )
    made = baselines._trained(args, baselines.BASELINES["nan"], "nan", 3, [str(trainer)])
    assert made["checkpoint"].read_text() == "done"
    assert [path.read_text() for path in sorted(runs.glob("*/last.ckpt"))] == ["done", "stopped", "stopped"]


@pytest.mark.slow
def test_what_was_trained_is_evaluated_elsewhere_without_training(args: Namespace, tmp_path: Path) -> None:
    args.aggregators, args.reference = ["learned_map"], "learned_map"
    baselines.compare(args, baselines.BASELINES)
    first = json.loads((args.out / "rows" / "learned_map-seed3.json").read_text())
    args.trained_in, args.out = args.out, tmp_path / "elsewhere"
    baselines.compare(args, baselines.BASELINES)
    again = json.loads((args.out / "rows" / "learned_map-seed3.json").read_text())
    assert {**again, "templates_per_second": 0} == {**first, "templates_per_second": 0}
    assert not (args.out / "runs").exists()
    (args.out / "rows" / "learned_map-seed3.json").unlink()
    args.steps = 6
    with pytest.raises(InputError, match="other steps than are asked for here"):
        baselines.compare(args, baselines.BASELINES)
    args.aggregators, args.reference = ["nan"], "nan"
    with pytest.raises(InputError, match="no finished training of nan with seed 3"):
        baselines.compare(args, baselines.BASELINES)


def test_rows_of_other_features_stand_beside(args: Namespace, tmp_path: Path) -> None:
    args.aggregators, args.reference = ["mean", "best_norm"], "mean"
    baselines.compare(args, baselines.BASELINES)
    before, args.beside, args.out = args.out, args.out, tmp_path / "others"
    args.aggregators = ["top_k"]
    baselines.compare(args, baselines.BASELINES)
    table = (args.out / "baselines.md").read_text()
    assert all(name in table for name in ("| top_k", f"| mean, {before.name}", f"| best_norm, {before.name}"))
    assert {path.name for path in (args.out / "rows").iterdir()} == {"mean-seed0.json", "top_k-seed0.json"}
    args.replicates += 1
    args.out = tmp_path / "more"
    with pytest.raises(InputError, match="was made with other replicates"):
        baselines.compare(args, baselines.BASELINES)
    args.beside = tmp_path / "nothing"
    with pytest.raises(InputError, match="nothing: holds no rows"):
        baselines.compare(args, baselines.BASELINES)


@pytest.mark.slow
def test_a_training_that_fails_leaves_no_row_and_says_where_its_words_are(args: Namespace) -> None:
    args.aggregators, args.reference = ["nan"], "mean"
    np.savez(
        args.features,
        features=np.ones((4, D), np.float32) / 4,
        norms=np.ones(4, np.float32),
        labels=np.array(["a", "a", "b", "b"]),
    )
    with pytest.raises(InputError, match="training of nan ended with code 2; its words are in"):
        baselines.compare(args, baselines.BASELINES)
    assert "error:" in (args.out / "logs" / "nan-seed3.log").read_text()
    assert [path.name for path in (args.out / "rows").iterdir()] == ["mean-seed0.json"]


def test_rows_of_another_comparison_are_refused(args: Namespace) -> None:
    args.aggregators, args.reference = ["top_k"], "mean"
    baselines.compare(args, baselines.BASELINES)
    args.steps = 6
    with pytest.raises(InputError, match=r"mean-seed0\.json: was made with other steps"):
        baselines.compare(args, baselines.BASELINES)


def test_figures_are_those_of_the_evaluation(args: Namespace) -> None:
    """Strict TAR lies among its draws, and a pooling that sees no difference has none to itself."""
    evaluator = Evaluator.of(
        read_evaluation_set(args.data_root, args.dataset_name, args.evaluation_features), 100
    )
    found = evaluator.figures("mean", build_aggregator("mean", {}))
    drawn = np.array(found["drawn"])
    assert drawn.shape == (100, len(FARS))
    for place, far in enumerate(FARS):
        assert drawn[:, place].min() <= found["tar"][rate_key(far)] <= drawn[:, place].max()
    assert 0 < found["rank1"] <= 1
    assert 0 <= found["tpir"] <= 1
    assert found["parameters"] == 0


def test_every_trained_aggregator_and_every_pooling_is_a_row() -> None:
    assert {baseline.aggregator for baseline in baselines.BASELINES.values()} == set(AGGREGATORS)
    for baseline in baselines.BASELINES.values():
        options = baseline.options | ({"embedding_size": D} if baseline.preset else {})
        module: nn.Module = build_aggregator(baseline.aggregator, options)
        assert (baseline.preset is not None) == any(True for _ in module.parameters())


def test_the_budget_is_the_same_for_all(args: Namespace, tmp_path: Path) -> None:
    args.evaluated_subjects.write_text("trained_3\n")

    def flag(command: list[str], name: str) -> str:
        return command[command.index(f"--{name}") + 1]

    for name, baseline in baselines.BASELINES.items():
        if baseline.preset is None:
            continue
        command = baselines.training_flags(args, baseline, 7, tmp_path)
        if baseline.preset == "good":
            # Only rows with this name are trained with impostor faces.
            assert (float(flag(command, "impostor_face_prob")) > 0) == ("_contaminated" in name)
        assert flag(command, "epoch_items") == "16"
        assert flag(command, "epochs") == "2"
        assert flag(command, "seed") == "7"
        assert flag(command, "aggregator") == baseline.aggregator
        # Evaluated subjects are never trained on.
        assert flag(command, "exclude_subjects") == str(args.evaluated_subjects)
    sab = baselines.training_flags(args, baselines.BASELINES["set_transformer_sab"], 7, tmp_path)
    # A list that names none of the subjects would be refused.
    args.evaluated_subjects.write_text("evaluated_1\n")
    assert "--exclude_subjects" not in baselines.training_flags(args, baselines.BASELINES["nan"], 7, tmp_path)
    assert sab[-2:] == ["--aggregator_options", "inducing_points=0"]


def test_the_row_of_the_paper_is_its_recipe_but_for_the_budget(args: Namespace, tmp_path: Path) -> None:
    args.evaluated_subjects.write_text("trained_3\n")
    command = baselines.training_flags(args, baselines.BASELINES["coreset_published"], 7, tmp_path)
    row = resolve(vars(main.flags().parse_args(command))).to_flat()
    paper = resolve({"features": row["features"], "preset": "published"}).to_flat()
    budget = {"batch_size", "epochs", "epoch_items"}
    differing = {name for name in row if row[name] != paper[name]}
    assert differing == budget | {"seed", "out", "exclude_subjects"}


def test_flags_and_data_that_cannot_be_used_are_refused(args: Namespace) -> None:
    args.steps, args.batch_size, args.evaluated_subjects = 5, 7, Path("nowhere.txt")
    with pytest.raises(InputError) as error:
        baselines.compare(args, baselines.BASELINES)
    for part in ("multiple of --epochs 2", "expected an even number", "no such file"):
        assert part in str(error.value)
    np.save(args.evaluation_features / "features.npy", np.ones((3, D), np.float32) / 4)
    np.save(args.evaluation_features / "norms.npy", np.ones(3, np.float32))
    with pytest.raises(InputError, match="features of 3 images, and TINY has"):
        Evaluator.of(read_evaluation_set(args.data_root, args.dataset_name, args.evaluation_features), 10)


def test_duplicates_are_counted_within_a_set() -> None:
    picks = torch.tensor([[3, 3, 3, -1], [0, 1, 0, 1], [2, -1, -1, -1]])
    assert duplicate_share(picks) == pytest.approx(4 / 8)


def row(name: str, seed: int, level: float, draws: list[float]) -> Row:
    return Row(
        name=name,
        seed=seed,
        options={},
        preset="good",
        train_seconds=60.0,
        train_cpu_seconds=30.0,
        command=f"python main.py --aggregator {name}",
        tar={rate_key(far): level for far in FARS},
        drawn=[[value] * len(FARS) for value in draws],
        rank1=level,
        tpir=None,
        templates_per_second=1000.0,
        parameters=10,
    )


def test_differences_are_paired_and_averaged_over_seeds() -> None:
    """What all draws have in common cancels: an interval far narrower than that of either side."""
    common = np.linspace(0.2, 0.8, 101)
    reference = [row("a", seed, 0.5, common.tolist()) for seed in (0, 1)]
    better = [row("b", 0, 0.6, (common + 0.1).tolist()), row("b", 1, 0.64, (common + 0.14).tolist())]
    found = difference(better, reference, 1e-2)
    assert found.mean == pytest.approx(0.12)
    assert found.low == pytest.approx(0.12)
    assert found.high == pytest.approx(0.12)


def test_the_table_says_means_spread_and_what_is_not_known(tmp_path: Path) -> None:
    rows = [row("a", 0, 0.5, [0.4, 0.5]), row("a", 1, 0.54, [0.4, 0.5]), row("b", 0, 0.4, [0.3, 0.6])]
    rows.append(replace(row("mean", 0, 0.2, [0.1, 0.2]), preset=None, command=""))
    write_tables(tmp_path, rows, "a")
    text = (tmp_path / "baselines.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:5]]
    cells = {line[0]: line[1:] for line in lines}
    assert cells["a"][:5] == ["2", "52.0 ± 2.8", "52.0 ± 2.8", "52.0 ± 2.8", "52.0 ± 2.8"]
    assert cells["a"][-2:] == ["reference", "reference"]
    assert cells["b"][0] == "1"
    assert cells["b"][5] == "-"
    assert cells["b"][7] == "0.5"
    assert cells["b"][-1].startswith("-12.0 [")
    assert cells["mean"][0] == cells["mean"][7] == "-"
    assert "- b: `python main.py --aggregator b`" in text


@pytest.mark.parametrize("method", METHODS)
def test_with_a_cohort_rates_and_their_draws_are_of_its_scores(args: Namespace, method: str) -> None:
    place = (args.data_root, args.dataset_name, args.evaluation_features)
    module = build_aggregator("norm_weighted", {})
    plain = Evaluator.of(read_evaluation_set(*place), 50).figures("norm_weighted", module)
    evaluation_set = read_evaluation_set(*place, args.features, args.evaluated_subjects, method)
    found = Evaluator.of(evaluation_set, 50).figures("norm_weighted", module)
    assert found["tar"] != plain["tar"]
    # The draws are of the same scores as the rates: they lie around them.
    for key, drawn in zip(found["tar"], np.array(found["drawn"]).T, strict=True):
        assert drawn.min() <= found["tar"][key] <= drawn.max()
        assert abs(np.median(drawn) - found["tar"][key]) < 0.3
