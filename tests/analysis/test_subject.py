"""A version's verdict, and how much of the photos the net is shown at once."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from serving.errors import BrokenVersion
from serving.modelspec import Preprocessing
from serving.storage import open_repository
from tests.analysis.nets import convnet, pictures
from trainer.analysis import compare, study
from trainer.analysis.differentiable import logits_of
from trainer.analysis.lattice import from_uint8, to_uint8
from trainer.analysis.photos import load_photos
from trainer.analysis.plans import plans
from trainer.analysis.robustness import size_of
from trainer.analysis.settings import BUDGETS
from trainer.analysis.subject import Subject, load_subject
from trainer.analysis.sweep import smallest, surest, sweep
from trainer.analysis.trust import Answers
from trainer.onnx_runner import OnnxRunner


@pytest.fixture
def subject(trained_once):
    return load_subject(
        open_repository(str(trained_once.models)), "cartoon", 1, torch.device("cpu")
    )


def batches_of(subject):
    """The sizes of the batches that its PyTorch net sees from now on."""
    seen = []
    subject.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def test_any_number_of_pictures_is_judged_in_small_batches(subject):
    pictures = np.random.default_rng(0).integers(0, 256, (75, 32, 32, 3), np.uint8)
    seen = batches_of(subject)
    served, torched = subject.judge(pictures)
    assert served.shape[1:] == torched.shape == (75, 2) and max(seen) <= 16
    assert np.abs(served[0] - torched).max() < 1e-4


def test_a_picture_of_another_size_is_the_same_to_pytorch_as_to_the_served_file(subject):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 57, 57, 3), np.uint8)
    pictures[0, :30] = 0
    served, torched = subject.judge(pictures)
    assert np.abs(served[0] - torched).max() < 1e-4


def test_the_verdict_is_the_served_part_of_a_judgement(subject):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 57, 57, 3), np.uint8)
    served, _ = subject.judge(pictures)
    seen = batches_of(subject)
    assert np.array_equal(subject.verdict(pictures), served[0])
    assert seen == []


def test_an_answer_that_is_no_number_is_never_the_first_class(subject, trained_once):
    """A file that divides by the brightest value of a picture, which is 0 in a black one."""
    model = onnx.load(trained_once.models / "cartoon/1/model.onnx")
    (last,) = (node for node in model.graph.node if "probabilities" in node.output)
    last.output[:] = ["sure"]
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["image"], ["levels"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Flatten", ["levels"], ["flat"]),
            helper.make_node("ReduceMax", ["flat", "along"], ["brightest"], keepdims=1),
            helper.make_node("Mul", ["sure", "brightest"], ["weighed"]),
            helper.make_node("Div", ["weighed", "brightest"], ["probabilities"]),
        ]
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "along"))
    names = subject.runners["fp32"].outputs
    broken = OnnxRunner(model.SerializeToString(), names)
    judged = dataclasses.replace(subject, runners={**subject.runners, "int8": broken})
    pictures = np.random.default_rng(0).integers(1, 256, (4, 32, 32, 3), np.uint8)
    assert np.allclose(judged.judge(pictures)[0][0], judged.judge(pictures)[0][1], atol=0.2)
    pictures[2] = 0
    photos = SimpleNamespace(pixels=pictures, labels=np.zeros(4, np.int64), alike=0, known=0)
    for asked in (lambda: judged.judge(pictures), lambda: Answers.of(judged, photos)):
        with pytest.raises(BrokenVersion, match="cartoon/1: the int8 file answers 1 of 4 pictures"):
            asked()
    judged = dataclasses.replace(subject, runners={"fp32": broken})
    for asked in (
        lambda: judged.verdict(pictures),
        lambda: compare._right(judged, photos),
    ):
        with pytest.raises(BrokenVersion, match="the fp32 file answers 1 of 4 pictures with what"):
            asked()
    subject.model.register_forward_hook(lambda *passed: passed[-1] * np.nan)
    with pytest.raises(BrokenVersion, match="PyTorch answers 4 of 4 pictures"):
        subject.judge(pictures)


def test_attacks_that_only_ask_are_answered_by_the_served_file(subject):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(9, 3, 32, 32, generator=generator)  # between the levels of a picture too
    exact = logits_of(subject.model, images)
    seen = batches_of(subject)
    assert torch.allclose(logits_of(subject.asked, images), exact, atol=1e-4)
    assert seen == []


def test_square_asks_the_served_file(subject, monkeypatch):
    plan = next(plan for plan in plans(BUDGETS["quick"]) if plan.name == "square")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    labels = subject.verdict(pictures).argmax(axis=1)
    asked, answer = [], subject.asked.forward

    def counting(images):
        asked.append(len(images))
        return answer(images)

    monkeypatch.setattr(subject.asked, "forward", counting)
    sweep(plan, subject, pictures, labels, 1 - labels, torch.Generator().manual_seed(0))
    assert len(asked) > 3


class _Runner:
    """Answers as a served file does, by the net itself."""

    def __init__(self, net):
        self._net = net

    def run(self, pixels):
        logits = logits_of(self._net, from_uint8(torch.from_numpy(pixels)))
        return logits.softmax(dim=1).numpy(), logits.numpy()


@pytest.fixture
def photographed():
    """A net of four classes, pictures, and what it takes them for."""
    net = convnet(4)
    spec = Preprocessing(size=32, interpolation="bilinear")
    manifest = SimpleNamespace(labels=tuple("abcd"), preprocessing=spec)
    runners = {"fp32": _Runner(net)}
    subject = Subject(
        manifest=manifest, net=net, model=net, asked=net, runners=runners, familiarity=None
    )
    shown = to_uint8(pictures(12, 32)).numpy()
    return subject, shown, subject.verdict(shown).argmax(axis=1)


@pytest.mark.parametrize("attack", ["pgd-linf", "pgd-linf-targeted"])
def test_what_falls_at_one_size_has_fallen_at_all_larger_ones(photographed, attack):
    subject, shown, labels = photographed
    targets = (labels + 1) % 4
    sizes = (4 / 255, 8 / 255, 32 / 255)
    plan = next(plan for plan in plans(BUDGETS["quick"]) if plan.key == attack)
    plan = dataclasses.replace(plan, epsilons=sizes)
    made = sweep(plan, subject, shown, labels, targets, torch.Generator().manual_seed(0))
    said, at = made["served"][:, 0].argmax(axis=2), made["turned_at"]
    turned = said == targets if plan.targeted else said != labels
    assert np.array_equal(turned, np.arange(3)[:, None] >= at)
    assert 0 < turned.sum() < turned.size and len(set(at)) > 1
    assert np.allclose(made["served"].sum(axis=3), 1, atol=1e-5), "what fell is still answered"
    assert np.allclose(subject.verdict(made["adversarial"]), made["served"][-1, 0], atol=1e-5)
    change = np.abs(made["adversarial"].astype(int) - shown).max(axis=(1, 2, 3))
    assert (change <= 255 * np.array([*sizes, sizes[-1]])[at] + 1e-6).all()


def test_one_step_is_taken_at_each_size_whatever_a_smaller_one_did(photographed):
    subject, shown, labels = photographed
    plan = next(plan for plan in plans(BUDGETS["quick"]) if plan.key == "fgsm-linf")

    def made(*sizes):
        some = dataclasses.replace(plan, epsilons=sizes)
        return sweep(some, subject, shown, labels, labels, torch.Generator().manual_seed(0))

    small, large = 8 / 255, 64 / 255
    both, alone = made(small, large), made(large)
    assert (both["turned_at"] == 0).any()
    assert np.allclose(both["served"][1], alone["served"][0], atol=1e-5)


def test_the_size_of_the_smallest_is_of_a_picture_that_turns_the_served_file(photographed):
    subject, shown, labels = photographed
    for norm in ("linf", "l2"):
        made = smallest(norm, subject, shown, labels, steps=5)
        turned = subject.verdict(made["adversarial"]).argmax(axis=1) != labels
        assert np.array_equal(np.isfinite(made["size"]), turned) and turned.any()
        sizes = [size_of(*pair) for pair in zip(shown, made["adversarial"], strict=True)]
        assert np.array_equal(made["size"][turned], np.array(sizes)[turned, int(norm == "l2")])
    never = smallest("linf", subject, shown, labels, steps=0)["size"]
    assert np.isinf(never).all()


def test_versions_are_compared_as_they_are_attacked_on_chunks_of_the_photos(
    trained_once, subject, monkeypatch
):
    seen = []

    def watched(*arguments):
        subject = load_subject(*arguments)
        subject.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        return subject

    def compared(chunk):
        monkeypatch.setattr(study, "CHUNK", chunk)
        monkeypatch.setattr(compare, "load_subject", watched)
        return compare.compare(
            open_repository(str(trained_once.models)),
            [("cartoon", 1), ("cartoon", 1)],
            str(trained_once.data),
            budget="quick",
            photos=12,
            seed=0,
            device="cpu",
            workers=1,
        )

    whole = compared(32)
    repository = open_repository(str(trained_once.models))
    manifest = repository.manifest("cartoon", 1)
    judged = load_photos(
        str(trained_once.data), repository, manifest, limit=12, seed=0, workers=1
    )  # fmt: skip
    right = subject.verdict(judged.pixels).argmax(axis=1) == judged.labels
    asked = judged.pixels[right], judged.labels[right]
    pgd = next(plan for plan in plans(BUDGETS["quick"]) if plan.key == "pgd-linf")
    at = sweep(pgd, subject, *asked, 1 - asked[1], torch.Generator())["turned_at"]
    for version in whole["versions"]:
        assert version["clean"]["correct"] == right.sum() == whole["both_right"]
        left = [point["correct"] for point in version["robust"]]
        assert left == [np.sum(at > e) for e in range(len(pgd.epsilons))]
    to_the_end = surest(subject, *asked, BUDGETS["quick"].pgd_steps)["served"][0].argmax(axis=1)
    assert np.array(whole["transfer"]) == pytest.approx(np.mean(to_the_end != asked[1]))
    seen.clear()
    assert compared(5) == whole and max(seen) <= 12
    assert {5, 2} <= set(seen), "attacked five at a time"
