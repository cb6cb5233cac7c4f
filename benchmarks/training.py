"""Accuracy on the test photos: our linear probe, scikit-learn's logistic regression on the same
frozen features, and a fine-tune by torchvision's reference recipe in a given time. Our probe is
scored through the ONNX file that would be published.

    pip install scikit-learn
    python benchmarks/training.py pets cats_vs_dogs --weights mobilenet_v2.pth --recipe-seconds 60

scikit-learn: LogisticRegressionCV, its penalty tuned by five folds, on one centre crop. The recipe:
SGD with momentum 0.9, cosine from 0.01 (batches of 32), epochs in which each photo comes once,
random resized crops of whole photos and mirror images, all layers from the pre-trained weights and
a new head (torchvision's references/classification).
Seeds change the folds, and all that the recipe draws. Beside each of theirs stands the exact
two-sided test of McNemar on the photos that they and our probe of that seed answer differently.
"""

import argparse
import sys
import time
import warnings

import numpy as np
import torch
from frozen import opened, parser_of
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from trainer.backbones import Calibrated, Classifier, build
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import PhotoData, targets_of
from trainer.evaluation import run_photos
from trainer.exporter import Exporter
from trainer.feature_cache import FeatureCache
from trainer.features import VIEWS, extract, plain
from trainer.metrics import accuracy, chance_of_gain, wilson_interval
from trainer.onnx_runner import OnnxRunner
from trainer.pictures import for_augmentation
from trainer.probe import fit_probe

_BATCH = 32


def main() -> int:
    parser = parser_of(__doc__, seeds=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--recipe-seconds", type=float, default=0, help="0: without the recipe")
    options = parser.parse_args()
    for folder in options.data:
        _compare(folder, options)
    return 0


def _compare(folder: str, options: argparse.Namespace) -> None:
    config, data, classifier, kept = opened(folder, options.size, options)
    started = time.perf_counter()
    features = _features(classifier, data, kept)
    photos = {split: len(members) for split, members in data.splits.items()}
    print(f"{config.data}: {photos}; {len(data.labels)} classes; {config.backbone}")
    print(f"features of all, {len(VIEWS)} views: {time.perf_counter() - started:.1f} s", flush=True)
    exporter = Exporter(config.size, Console(to_stderr=True))
    ours = []
    for seed in range(options.seeds):
        started = time.perf_counter()
        ours.append(_ours(classifier, exporter, features, data, seed))
        _say("our probe", seed, ours[seed], data, time.perf_counter() - started)
    for seed in range(options.seeds):
        started = time.perf_counter()
        scores = _sklearn(features, data, seed)
        _say("scikit-learn", seed, scores, data, time.perf_counter() - started, ours[seed])
    for seed in range(options.seeds if options.recipe_seconds else 0):
        torch.manual_seed(seed)
        net = build(config.backbone, len(data.labels), config.size, options.weights)
        started = time.perf_counter()
        scores = _recipe(net, data, config, options.recipe_seconds)
        _say("recipe", seed, scores, data, time.perf_counter() - started, ours[seed])


def _features(classifier: Classifier, data: PhotoData, kept: FeatureCache) -> dict[str, np.ndarray]:
    """split -> float32 [n, views, F]."""
    return {
        split: extract(classifier, photos, data.squares, kept, lambda *_: None)
        for split, photos in data.splits.items()
    }


def _ours(
    classifier: Classifier,
    exporter: Exporter,
    features: dict[str, np.ndarray],
    data: PhotoData,
    seed: int,
) -> np.ndarray:
    """Scores on test, of the exported file."""
    known = np.concatenate([features["train"], features["val"]])
    targets = targets_of(data.learnt_from)
    head = fit_probe(known, targets, len(data.labels), np.random.default_rng(seed)).head
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(head.weight))
        classifier.head.bias.copy_(torch.from_numpy(head.bias))
    exported = exporter.export(Calibrated(classifier, 1.0).eval())
    runner = OnnxRunner(exported.SerializeToString())
    return run_photos(runner, data.splits["test"], data.squares, lambda *_: None)[1]


def _sklearn(features: dict[str, np.ndarray], data: PhotoData, seed: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    known = np.concatenate([features["train"][:, 0], features["val"][:, 0]])
    # Rotated into the space that the photos span: the same answers, with fewer columns.
    centre = known.mean(axis=0)
    _, _, axes = np.linalg.svd(known - centre, full_matrices=False)
    known = (known - centre) @ axes.T
    targets = targets_of(data.learnt_from)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = LogisticRegressionCV(Cs=np.logspace(-4, 2, 7), cv=folds, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer photos than folds
        model.fit(known, targets)
    scores = model.decision_function((features["test"][:, 0] - centre) @ axes.T)
    return scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)


def _recipe(net: Classifier, data: PhotoData, config: TrainConfig, seconds: float) -> np.ndarray:
    """Scores on test after a training of that long."""
    transform = v2.Compose(
        [v2.RandomResizedCrop(config.size, antialias=True), v2.RandomHorizontalFlip()]
    )
    pictures = for_augmentation(2 * config.size, workers=config.workers)  # small crops stay sharp
    photos = data.learnt_from
    targets = torch.from_numpy(targets_of(photos))
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, lr=0.01, weight_decay=1e-4)
    started = time.perf_counter()
    net.train()
    order: list[int] = []
    while (share := (time.perf_counter() - started) / seconds) < 1:
        if len(order) < _BATCH:  # what is left of an epoch makes no batch
            order = torch.randperm(len(photos)).tolist()
        chosen, order = order[:_BATCH], order[_BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * 0.5 * (1 + np.cos(np.pi * share))
        whole = pictures.get([photos[i] for i in chosen])
        crops = [transform(torch.tensor(pixels).permute(2, 0, 1)) for pixels in whole]
        loss = cross_entropy(net(torch.stack(crops).float() / 255), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    test = data.splits["test"]
    with torch.inference_mode():
        parts = [
            net(plain(data.squares, test[start : start + _BATCH])).numpy()
            for start in range(0, len(test), _BATCH)
        ]
    return np.concatenate(parts)


def _say(
    name: str,
    seed: int,
    scores: np.ndarray,
    data: PhotoData,
    seconds: float,
    ours: np.ndarray | None = None,
) -> None:
    targets = data.targets("test")
    right = round(accuracy(scores, targets) * len(targets))
    low, high = wilson_interval(right, len(targets))
    line = (
        f"{name:<14} seed {seed}: {right / len(targets):.4f} ({right} of {len(targets)}; "
        f"{low:.3f} to {high:.3f})  {seconds:.1f} s"
    )
    if ours is not None:
        either = (chance_of_gain(scores, ours, targets), chance_of_gain(ours, scores, targets))
        line += f"  other than ours: p = {min(1.0, 2 * min(either)):.2f}"
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
