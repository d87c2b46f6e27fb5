"""Training of the aggregator: cached features against images, and our step against the published one.

python benchmarks/speed/training.py                  # all; about three minutes on two quiet cores
python benchmarks/speed/training.py --phases step    # one of them

  paths   steps/s from cached features against steps/s from images through ir_50, the same recipe and loop
  step    B 20, T 20, K 3, 10,000 classes, precomputed features: against a re-creation of the published step
  ragged  512 templates per step, as the preset 'good' samples them: templates/s and padding
  augmentation  images/s of the augmentations of training images, one thread, each with probability 0.2
  long    memory of a step with a template of 4,096 faces; time against the number of faces, with a plot

Both sides of a ratio alternate in one process; every line has the number of cores that other processes used.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.published_training import PublishedHead, PublishedModel
from benchmarks.speed.usage import Usage, hand_over, in_process_of_its_own, measured
from coreset import FaceSets, build_aggregator
from data.sampling.augmentation import Augmentation, random_horizontal_flip
from data.sampling.positions import Item
from data.sampling.templates import TemplateDataset, collate_templates
from data.sampling.views import ViewPlan
from features.bank import FeatureBank
from features.templates import TemplateRecipe, TemplateSampler
from head import build_head
from net import build_backbone
from training.contrastive_loss import pair_contrast

D, CLASSES = 512, 10_000
PHASES = ("paths", "step", "ragged", "augmentation", "long")
AUGMENTED_IMAGES = 500
# Faces of the long template.
LONGEST = 4_096


class Ours:
    """Aggregator, head and optimiser of our training, a step at a time."""

    def __init__(self, classes: int, *, contrast: bool = False, head: str = "adaface") -> None:
        torch.manual_seed(0)
        self.aggregator = build_aggregator("coreset", {"embedding_size": D, "coreset_size": 3}).train()
        self.head = build_head(head, D, classes).train()
        self.contrast = contrast
        self.parameters = [*self.aggregator.parameters(), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-3, fused=True)

    def step(self, sets: FaceSets, labels: Tensor) -> float:
        """Forward, backward, clip, update."""
        descriptor = self.aggregator(sets)
        logits = self.head(descriptor.embedding, descriptor.norm[:, None], labels)
        loss = F.cross_entropy(logits, labels)
        if self.contrast:
            loss = loss + pair_contrast(descriptor.embedding, labels)
        return _update(loss, self.parameters, self.optimiser)


class Published:
    """The same of the published training."""

    def __init__(self, classes: int) -> None:
        torch.manual_seed(0)
        self.model, self.head = PublishedModel(D).train(), PublishedHead(D, classes).train()
        others = [p for name, p in self.model.named_parameters() if name != "gamma"]
        others += list(self.head.parameters())
        self.parameters = [self.model.gamma, *others]
        groups = [{"params": [self.model.gamma], "weight_decay": 0.0}, {"params": others}]
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-3)

    def step(self, features: Tensor, norms: Tensor, labels: Tensor) -> float:
        """Forward, backward, clip, update of features (B, T, D) and norms (B, T, 1)."""
        embedding, norm = self.model(features, norms)
        return _update(
            F.cross_entropy(self.head(embedding, norm, labels), labels), self.parameters, self.optimiser
        )


def compare_steps(args: argparse.Namespace) -> None:
    """B 20, T 20, K 3: ours against the published step, in turns."""
    features = F.normalize(torch.randn(20, 20, D), dim=-1)
    norms = torch.empty(20, 20).normal_(20, 6).clip(5, 35)
    labels = torch.randint(0, CLASSES, (20,))
    sets = FaceSets.dense(features, norms)
    ours, published = Ours(CLASSES), Published(CLASSES)
    seconds, usage = in_turns(
        lambda: ours.step(sets, labels),
        lambda: published.step(features, norms.unsqueeze(-1), labels),
        args.rounds,
    )
    print("step: B 20, T 20, K 3, 10,000 classes, features given")
    print(f"  published {1e3 * seconds[1]:7.1f} ms")
    print(
        f"  ours      {1e3 * seconds[0]:7.1f} ms   ratio {seconds[1] / seconds[0]:.2f}  {usage_text(usage)}"
    )


def compare_paths(args: argparse.Namespace) -> None:
    """Steps/s from images through ir_50, and from features; B 20, T of 1 to 30, 1,000 classes."""
    torch.manual_seed(0)
    backbone = build_backbone("ir_50").eval().to(memory_format=torch.channels_last)
    drawn = TemplateDataset(
        NoiseFaces(1000, 5), backbone.spec, Augmentation(0.5, 0.5, 0.5), seed=0, max_template_size=30
    )
    ours = Ours(1000)

    @torch.no_grad()
    def embedded(images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = backbone.spec.normalise(images).contiguous(memory_format=torch.channels_last)
        parts = [backbone(part) for part in torch.split(pixels, 16)]
        return torch.cat([f for f, _ in parts]), torch.cat([n for _, n in parts]).squeeze(1)

    def from_images(step: int) -> int:
        batch = collate_templates([drawn[Item(step, place, 7 * place)] for place in range(20)])
        features, norms = embedded(batch.images)
        ours.step(FaceSets(features, norms, batch.offsets), batch.labels)
        return len(batch.images)

    with tempfile.TemporaryDirectory() as folder:
        bank = drawn_bank(Path(folder), subjects=1000, images=5)
        template_sampler = TemplateSampler(bank, TemplateRecipe(style="clips", max_size=30), seed=0)

        def from_features(step: int) -> int:
            batch = template_sampler.batch([Item(step, place, 7 * place) for place in range(20)])
            sets = FaceSets(batch.features.float(), batch.norms, batch.offsets, media=batch.media)
            ours.step(sets, batch.labels)
            return len(batch.rows)

        from_features(0)
        faces, rates, cpu, usages = [], [], [], []
        for path, steps in ((from_features, 100), (from_images, args.image_steps), (from_features, 100)):
            with measured() as usage:
                faces.append(statistics.mean(path(1 + step) for step in range(steps)))
            rates.append(steps / usage.wall)
            cpu.append(usage.cpu / steps)
            usages.append(usage)
    print("paths: B 20, templates of 1 to 30 faces, 1,000 classes; all of a step, drawing and reading too")
    print(
        f"  images, ir_50   {rates[1]:9.4f} steps/s, {faces[1]:.0f} faces per step; {usage_text(usages[1])}"
    )
    for number in (0, 2):
        rate = f"{rates[number]:9.1f} steps/s, {faces[number]:.0f} faces per step"
        print(f"  cached features {rate}; {usage_text(usages[number])}")
    ratio = min(rates[0], rates[2]) / rates[1]
    print(f"  ratio {ratio:.0f} (the slower of both); of CPU seconds {cpu[1] / max(cpu[0], cpu[2]):.0f}")


def ragged_batches(args: argparse.Namespace) -> None:
    """512 templates per step as the preset good draws them, 1,000 classes."""
    with tempfile.TemporaryDirectory() as folder:
        bank = drawn_bank(Path(folder), subjects=1000, images=5)
        template_sampler = TemplateSampler(bank, TemplateRecipe(impostor_media_prob=0.2, paired=True), seed=0)
        ours = Ours(1000, contrast=True, head="cosface")
        places, faces = [], []

        def step(number: int) -> None:
            batch = template_sampler.batch(
                [Item(0, 512 * number + place, place // 2) for place in range(512)]
            )
            sets = FaceSets(batch.features.float(), batch.norms, batch.offsets, media=batch.media)
            places.append(sum(chunk.rows.numel() for chunk in sets.chunks()))
            faces.append(sets.num_faces)
            ours.step(sets, batch.labels)

        step(0)
        with measured() as usage:
            for number in range(1, 1 + args.rounds):
                step(number)
    rate = 512 * args.rounds / usage.wall
    print(f"ragged: 512 templates per step, {statistics.mean(faces):.0f} faces, sizes 1 to 160")
    print(f"  {rate:.0f} templates/s; {sum(places) / sum(faces) - 1:.1%} of padding; {usage_text(usage)}")


def augmentation_rate(args: argparse.Namespace) -> None:
    """Images/s of the augmentations and the flip, on 112 x 112 images in memory."""
    source = NoiseFaces(subjects=1, images=AUGMENTED_IMAGES)
    images = [source.image(row) for row in range(AUGMENTED_IMAGES)]
    rng, augment = np.random.default_rng(0), Augmentation()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    with measured() as usage:
        for _ in range(args.rounds):
            for image in images:
                augment.apply(random_horizontal_flip(image, rng), rng)
    cv2.setNumThreads(threads)
    rate = args.rounds * AUGMENTED_IMAGES / usage.wall
    print(f"augmentation: {rate:.0f} images/s, one thread; {usage_text(usage)}")


def long_templates(args: argparse.Namespace) -> None:
    """Memory at 4,096 faces, and time against the number of faces."""
    usage = in_process_of_its_own(str(Path(__file__).resolve()), ["--worker"])
    print(
        f"long: a step with one template of {LONGEST:,} faces: {usage.extra_mib:.0f} MiB; {usage_text(usage)}"
    )
    sizes = [64, 128, 256, 512, 1024, 2048, 4096]
    ours, seconds = Ours(100), []
    for size in sizes:
        sets, labels = long_sets(size, count=4)
        ours.step(sets, labels)
        each = []
        for _ in range(max(3, args.rounds // 4)):
            start = time.perf_counter()
            ours.step(sets, labels)
            each.append(time.perf_counter() - start)
        seconds.append(statistics.median(each))
    for size, second in zip(sizes, seconds, strict=True):
        print(f"  4 x {size:5d} faces {1e3 * second:8.1f} ms  {1e6 * second / (4 * size):6.1f} us per face")
    slope = math.log(seconds[-1] / seconds[-4]) / math.log(sizes[-1] / sizes[-4])
    print(f"  time grows as the number of faces to the power {slope:.2f} (from 512 to 4,096)")
    draw(sizes, seconds, args.plot)
    print(f"  plot: {args.plot}")


def long_sets(size: int, count: int) -> tuple[FaceSets, Tensor]:
    """`count` sets of `size` faces each, and labels."""
    features = F.normalize(torch.randn(count, size, D), dim=-1)
    return FaceSets.dense(features, torch.empty(count, size).uniform_(5, 35)), torch.arange(count)


def worker() -> None:
    """One long step in a process of its own; the inputs are counted too."""
    ours = Ours(CLASSES)
    ours.step(*long_sets(2, count=2))
    with measured() as usage:
        ours.step(*long_sets(LONGEST, count=1))
    hand_over(usage)


class NoiseFaces:
    """A source of random images that are there at once: reading files is not what is compared."""

    name = "noise"

    def __init__(self, subjects: int, images: int) -> None:
        self.subjects = [str(number) for number in range(subjects)]
        self.labels = np.repeat(np.arange(subjects), images)
        self._image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> np.ndarray:
        """(112, 112, 3)."""
        return np.roll(self._image, row, axis=0)


def drawn_bank(folder: Path, subjects: int, images: int) -> FeatureBank:
    """Random features of 16 views in float16, mapped from a file as a store's are."""
    rng = np.random.default_rng(0)
    V = 16
    path = folder / "features.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.float16, (subjects * images * V, D))
    for part in range(0, len(stored), 4096):
        rows = rng.standard_normal((min(4096, len(stored) - part), D), np.float32)
        stored[part : part + 4096] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    stored.flush()
    starts = np.arange(subjects * images) * V
    return FeatureBank(
        name="random",
        features=np.asarray(np.load(path, mmap_mode="c")),
        norms=rng.uniform(5, 35, len(stored)).astype(np.float32),
        subjects=[str(number) for number in range(subjects)],
        labels=np.repeat(np.arange(subjects), images),
        starts=starts,
        lengths=np.full_like(starts, V),
        plan=ViewPlan.of(V),
        identity={"images": "random"},
    )


def in_turns(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[list[float], Usage]:
    """Median seconds of each, by turns, so that a busy machine touches both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        first(), second()
    with measured() as usage:
        for _ in range(rounds):
            for call, kept in zip((first, second), seconds, strict=True):
                start = time.perf_counter()
                call()
                kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in seconds], usage


def usage_text(usage: Usage) -> str:
    """How busy others were."""
    return f"others kept {usage.others:.2f} cores busy"


def draw(sizes: list[int], seconds: list[float], path: Path) -> None:
    """Milliseconds of a step against faces, with a line through the origin."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    faces = [4 * size for size in sizes]
    axes.plot(faces, [1e3 * second for second in seconds], "o-", label="a training step, 4 templates")
    axes.plot([0, faces[-1]], [0, 1e3 * seconds[-1]], "--", label="linear")
    axes.set(xlabel="faces", ylabel="ms")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _update(loss: Tensor, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer) -> float:
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError("the loss is not finite")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--rounds", type=int, default=20, help="steps of which medians are taken")
    parser.add_argument("--image_steps", type=int, default=1, help="steps from images, 20 s each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plot", type=Path, default=Path("training_step.png"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run the phases."""
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        worker()
        return
    print(f"torch {torch.__version__}, {args.threads} thread(s)")
    phases = {
        "paths": compare_paths,
        "step": compare_steps,
        "ragged": ragged_batches,
        "augmentation": augmentation_rate,
        "long": long_templates,
    }
    for name in args.phases:
        phases[name](args)


if __name__ == "__main__":
    main()
