"""Our attacks beside those of foolbox, torchattacks and ART: same model, photos, epsilon and steps.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install \
        torch torchvision foolbox torchattacks adversarial-robustness-toolbox packaging
    .venv/bin/python benchmarks/analysis.py --peer /tmp/peers/bin/python --shared ../shared/data

The model is mobilenet_v2 with a logistic head fitted to the frozen features of cats_vs_dogs/train;
the photos are the first of cats_vs_dogs/test that it has right, cats and dogs in turn. Robust
accuracy is that of the 8-bit pictures; `float` is what the library itself would claim. Each library
runs in a process of its own; CPU seconds are those of the process, which hold on a busy machine.
Exit code 1 if ours is weaker than the limits allow or slower than asked.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchvision

ROOT = Path(__file__).resolve().parents[1]
STEPS = 20
SIZE = 224
# What to run: (attack, epsilon in levels).
RUNS = tuple(
    (attack, levels) for levels in (1, 4) for attack in ("fgsm", "pgd", "apgd", "ensemble")
)
QUERIES = 20  # of Square, the last of the ensemble
FASTER = {1: 1.5, 4: 3.0}  # epsilon in levels -> asked of PGD against the fastest peer


class Net(torch.nn.Module):
    """mobilenet_v2 with its normalisation inside and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.mobilenet_v2(weights=None).features
        self.head = torch.nn.Linear(1280, 2)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.features((images - self.mean) / self.std).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", help="Python with foolbox and torchattacks installed")
    parser.add_argument("--shared", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--problem", type=Path, help="keep model and photos in this file")
    peers = [name for name in WORKERS if name != "ours"]
    parser.add_argument("--libraries", nargs="+", choices=peers, default=peers)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        print(json.dumps(measure(WORKERS[arguments.worker], arguments.problem)))
        return
    if not arguments.peer:
        parser.error("--peer is needed: see the head of this file")
    with tempfile.TemporaryDirectory() as folder:
        problem = arguments.problem or Path(folder) / "problem.pt"
        if not problem.exists():
            torch.save(pose(arguments.shared, arguments.photos), problem)
        results = {
            name: run_worker(
                sys.executable if name == "ours" else arguments.peer, name, problem, arguments
            )
            for name in ("ours", *arguments.libraries)
        }
    sys.exit(report(results))


def run_worker(python: str, name: str, problem: Path, arguments: argparse.Namespace) -> dict:
    command = [python, "-W", "ignore", __file__, "--worker", name, "--problem", str(problem)]
    command += ["--threads", str(arguments.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def pose(shared: Path, count: int) -> dict:
    """Fit the head and choose the photos."""
    net = Net().eval()
    full = torchvision.models.mobilenet_v2(weights=None)
    full.load_state_dict(torch.load(shared / "weights/mobilenet_v2.pth", weights_only=True))
    net.features = full.features.eval()
    images, labels = photos(shared / "cats_vs_dogs/train")
    with torch.inference_mode():
        features = torch.cat([net.embed(part.float() / 255) for part in images.split(16)])
    fit(net.head, features.clone(), labels)
    images, labels = photos(shared / "cats_vs_dogs/test")
    with torch.inference_mode():
        right = torch.cat([net(part.float() / 255).argmax(1) for part in images.split(16)])
    chosen = [torch.nonzero((right == labels) & (labels == k)).squeeze(1) for k in (0, 1)]
    rows = torch.stack([c[: (count + 1) // 2] for c in chosen], dim=1).flatten()[:count]
    return {"state": net.state_dict(), "images": images[rows], "labels": labels[rows]}


def photos(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n, 3, S, S] as a server would see them, and the labels by folder name."""
    sys.path.insert(0, str(ROOT))
    from serving.modelspec import Preprocessing
    from serving.preprocess import preprocess

    spec = Preprocessing(size=SIZE, interpolation="bilinear")
    paths = sorted(folder.glob("*/*.jpg"))
    names = sorted({path.parent.name for path in paths})
    pixels = [torch.from_numpy(preprocess(p.read_bytes(), spec).copy()) for p in paths]
    labels = torch.tensor([names.index(path.parent.name) for path in paths])
    return torch.stack(pixels).permute(0, 3, 1, 2), labels


def fit(head: torch.nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> None:
    """Logistic regression with the penalty of scikit-learn's default, C = 1."""
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(features), labels)
        loss = loss + head.weight.square().sum() / (2 * len(labels))
        loss.backward()
        return loss

    optimizer.step(closure)


# --- the libraries: (net, images, labels) -> attack name, levels -> adversarial images


def ours(net: Net, images: torch.Tensor, labels: torch.Tensor) -> Callable:
    sys.path.insert(0, str(ROOT))
    from trainer.analysis.attacks.apgd import apgd_cross_entropy, apgd_targeted
    from trainer.analysis.attacks.ball import Ball
    from trainer.analysis.attacks.goal import Goal
    from trainer.analysis.attacks.gradient import fgsm, pgd
    from trainer.analysis.attacks.square import square
    from trainer.folding import folded

    goal, ready = Goal(labels=labels), folded(net)

    def ensemble(ball: Ball, settings: dict) -> torch.Tensor:
        """As AutoAttack (arXiv:2003.01690) with FGSM and PGD before: each attack gets the images
        that withstood those before it."""
        attacks = (
            fgsm,
            partial(pgd, **settings),
            partial(apgd_cross_entropy, **settings),
            partial(apgd_targeted, **settings),
            partial(square, queries=QUERIES, generator=settings["generator"]),
        )
        adversarial, stand = images.clone(), torch.arange(len(images))
        for attack in attacks:
            if len(stand):
                result = attack(ready, images[stand], goal[stand], ball)
                adversarial[stand] = result.adversarial
                stand = stand[~result.success]
        return adversarial

    def attack(name: str, levels: int) -> torch.Tensor:
        ball, generator = Ball(norm="linf", epsilon=levels / 255), torch.Generator().manual_seed(0)
        settings = {"steps": STEPS, "generator": generator}
        if name == "fgsm":
            return fgsm(ready, images, goal, ball).adversarial
        if name == "pgd":
            return pgd(ready, images, goal, ball, **settings).adversarial
        if name == "ensemble":
            return ensemble(ball, settings)
        return apgd_cross_entropy(ready, images, goal, ball, **settings).adversarial

    return attack


def foolbox(net: Net, images: torch.Tensor, labels: torch.Tensor) -> Callable:
    import foolbox as fb

    model = fb.PyTorchModel(net, bounds=(0, 1))

    def attack(name: str, levels: int) -> torch.Tensor | None:
        if name in ("apgd", "ensemble"):  # it has neither
            return None
        chosen = fb.attacks.LinfFastGradientAttack()
        if name == "pgd":
            chosen = fb.attacks.LinfPGD(abs_stepsize=step_size(levels), steps=STEPS)
        return chosen(model, images, labels, epsilons=levels / 255)[1]

    return attack


def torchattacks(net: Net, images: torch.Tensor, labels: torch.Tensor) -> Callable:
    import torchattacks as ta

    def attack(name: str, levels: int) -> torch.Tensor | None:
        if name == "ensemble":  # AutoAttack stops with an error at fewer than four classes
            return None
        epsilon = levels / 255
        chosen = {
            "fgsm": lambda: ta.FGSM(net, eps=epsilon),
            "pgd": lambda: ta.PGD(net, eps=epsilon, alpha=step_size(levels), steps=STEPS),
            "apgd": lambda: ta.APGD(net, eps=epsilon, steps=STEPS, n_restarts=1, loss="ce"),
        }[name]()
        return chosen(images, labels)

    return attack


def art(net: Net, images: torch.Tensor, labels: torch.Tensor) -> Callable:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        net,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=2,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )

    def attack(name: str, levels: int) -> torch.Tensor | None:
        if name == "ensemble":  # its AutoAttack uses the loss that fewer than four classes lack
            return None
        size = {"eps": levels / 255, "batch_size": len(images)}
        steps = {**size, "max_iter": STEPS, "verbose": False}
        chosen = {
            "fgsm": lambda: evasion.FastGradientMethod(classifier, **size),
            "pgd": lambda: evasion.ProjectedGradientDescentPyTorch(
                classifier, eps_step=step_size(levels), **steps
            ),
            "apgd": lambda: evasion.AutoProjectedGradientDescent(
                classifier,
                eps_step=step_size(levels),
                nb_random_init=1,
                loss_type="cross_entropy",
                **steps,
            ),
        }[name]()
        return torch.from_numpy(chosen.generate(x=images.numpy(), y=labels.numpy()))

    return attack


WORKERS = {"ours": ours, "torchattacks": torchattacks, "foolbox": foolbox, "art": art}


def step_size(levels: int) -> float:
    """That of our PGD."""
    return 2.5 * levels / 255 / STEPS


def measure(library: Callable, problem: Path) -> dict:
    """ "attack levels" -> wall and CPU seconds, and which photos stand in float and in 8 bits."""
    given = torch.load(problem, weights_only=True)
    net = Net()
    net.load_state_dict(given["state"])
    net.eval().requires_grad_(False)
    images, labels = given["images"].float() / 255, given["labels"]
    attack = library(net, images, labels)
    net(images[:2])
    results = {}
    for name, levels in RUNS:
        torch.manual_seed(0)
        wall, cpu = time.perf_counter(), time.process_time()
        adversarial = attack(name, levels)
        if adversarial is None:
            continue
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rounded = (adversarial.detach() * 255).round() / 255
        assert (rounded - images).abs().max() * 255 < levels + 0.01
        results[f"{name} {levels}"] = {
            "wall_s": wall,
            "cpu_s": cpu,
            "float": standing(net, adversarial.detach(), labels),
            "standing": standing(net, rounded, labels),
        }
        left = share(results[f"{name} {levels}"]["standing"])
        told = f"{name} {levels}/255 leaves {left:.3f}, {wall:.0f} s, CPU {cpu:.0f} s"
        print(f"{library.__name__}: {told}", file=sys.stderr)
    return results


def standing(net: Net, images: torch.Tensor, labels: torch.Tensor) -> list[bool]:
    with torch.inference_mode():
        says = torch.cat([net(part).argmax(dim=1) for part in images.split(16)])
    return (says == labels).tolist()


def report(results: dict) -> int:
    print("attack         library       robust  float   wall s   CPU s")
    for name, levels in RUNS:
        for library, measured in results.items():
            if row := measured.get(f"{name} {levels}"):
                print(
                    f"{name} {levels}/255".ljust(15) + f"{library:13s}"
                    f"{share(row['standing']):6.3f} {share(row['float']):6.3f} "
                    f"{row['wall_s']:8.1f} {row['cpu_s']:7.1f}"
                )
    failed = [text for text, holds in checks(results) if not holds]
    for text, holds in checks(results):
        print(("ok      " if holds else "FAILED  ") + text)
    return 1 if failed else 0


def checks(results: dict) -> list[tuple[str, bool]]:
    mine, peers = results["ours"], [r for name, r in results.items() if name != "ours"]
    found = []
    for levels in FASTER:
        one_step, pgd = f"fgsm {levels}", f"pgd {levels}"
        same = all(mine[one_step]["standing"] == peer[one_step]["standing"] for peer in peers)
        found.append((f"{one_step}/255: the same photos stand as in the peers", same))
        best = min(share(peer[pgd]["float"]) for peer in peers)
        mine_left = share(mine[pgd]["standing"])
        text = f"{pgd}/255: {mine_left:.3f}, within one point of the strongest peer's {best:.3f}"
        found.append((text, mine_left <= best + 0.01))
        every = [name for name, of in RUNS if of == levels]
        mine_worst = share(mine[f"ensemble {levels}"]["standing"])
        peer_worst = min(worst(peer, every, levels) for peer in peers)
        text = f"ensemble {levels}/255: {mine_worst:.3f}, not above any peer's {peer_worst:.3f}"
        found.append((text, mine_worst <= peer_worst))
        ratio = min(peer[pgd]["cpu_s"] for peer in peers) / mine[pgd]["cpu_s"]
        text = f"{pgd}/255: {ratio:.1f} times as fast as the fastest peer (CPU time)"
        found.append((f"{text}, at least {FASTER[levels]} asked", ratio >= FASTER[levels]))
    return found


def worst(measured: dict, attacks: list[str], levels: int) -> float:
    rows = [measured[key]["standing"] for a in attacks if (key := f"{a} {levels}") in measured]
    return share([all(of_photo) for of_photo in zip(*rows, strict=True)])


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


if __name__ == "__main__":
    main()
