"""A version's verdict, and how much of the photos the net is shown at once."""

import dataclasses

import numpy as np
import pytest
import torch

from serving.storage import open_repository
from trainer.analysis import compare, study
from trainer.analysis.differentiable import input_gradient, logits_of
from trainer.analysis.plans import plans
from trainer.analysis.robustness import size_of
from trainer.analysis.settings import BUDGETS
from trainer.analysis.subject import load_subject
from trainer.analysis.sweep import smallest, sweep


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


def test_attacks_that_only_ask_are_answered_by_the_served_file(subject):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(9, 3, 32, 32, generator=generator)  # between the levels of a picture too
    exact = logits_of(subject.model, images)
    seen = batches_of(subject)
    assert torch.allclose(logits_of(subject.asked, images), exact, atol=1e-4)
    assert seen == []
    for_gradients = input_gradient(subject.asked, images, lambda logits: logits[:, 0])
    for found, expected in zip(
        for_gradients,
        input_gradient(subject.model, images, lambda logits: logits[:, 0]),
        strict=True,
    ):
        assert torch.equal(found, expected)


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


@pytest.fixture
def photographed(subject):
    """Pictures of noise, and what the served file takes them for."""
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    return pictures, subject.verdict(pictures).argmax(axis=1)


def test_what_falls_at_one_size_has_fallen_at_all_larger_ones(subject, photographed):
    pictures, labels = photographed
    sizes = (1 / 255, 8 / 255, 32 / 255)
    plan = next(plan for plan in plans(BUDGETS["quick"]) if plan.key == "pgd-linf")
    plan = dataclasses.replace(plan, epsilons=sizes)
    made = sweep(plan, subject, pictures, labels, 1 - labels, torch.Generator().manual_seed(0))
    turned, at = made["served"][:, 0].argmax(axis=2) != labels, made["turned_at"]
    assert np.array_equal(turned, np.arange(3)[:, None] >= at)
    assert 0 < turned.sum() < turned.size and len(set(at)) > 1
    assert np.array_equal(subject.verdict(made["adversarial"]), made["served"][-1, 0])
    change = np.abs(made["adversarial"].astype(int) - pictures).max(axis=(1, 2, 3))
    assert (change <= 255 * np.array([*sizes, sizes[-1]])[at] + 1e-6).all()


def test_the_size_of_the_smallest_is_of_a_picture_that_turns_the_served_file(subject, photographed):
    pictures, labels = photographed
    for norm in ("linf", "l2"):
        made = smallest(norm, subject, pictures, labels, steps=5)
        turned = subject.verdict(made["adversarial"]).argmax(axis=1) != labels
        assert np.array_equal(np.isfinite(made["size"]), turned) and turned.any()
        sizes = [size_of(*pair) for pair in zip(pictures, made["adversarial"], strict=True)]
        assert np.array_equal(made["size"][turned], np.array(sizes)[turned, int(norm == "l2")])
    never = smallest("linf", subject, pictures, labels, steps=0)["size"]
    assert np.isinf(never).all()


def test_versions_are_compared_on_chunks_of_the_photos(trained_once, monkeypatch):
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
    seen.clear()
    assert compared(5) == whole and max(seen) <= 12
    assert {5, 2} <= set(seen), "attacked five at a time"
