"""The probe, and whether what is fine-tuned from it takes its place."""

import numpy as np
import pytest
import torch

from tests.trainer.conftest import MakePhotos
from trainer.calibration import fit_temperature
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.distributed import ALONE
from trainer.features import plain
from trainer.fitting import SIGNIFICANT, fit, start_from_probe
from trainer.preparing import Run, prepare
from trainer.probe import fit_head
from trainer.tiny import Tiny


def probing(photos: MakePhotos) -> Run:
    """Ten photos of each class, and a tiny net of random weights to learn from."""
    folder = photos(per_class=10)
    weights = folder.with_name("tiny.pth")
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), weights)
    config = TrainConfig(
        data=str(folder),
        name="x",
        out=str(folder.with_name("models")),
        backbone="tiny",
        weights=str(weights),
        size=48,
        epochs=1,
        batch_size=8,
        thaw=1.0,
        val_fraction=0.3,
        checkpoints="none",
    )
    return prepare(config, Console(to_stderr=True), ALONE)


@pytest.mark.parametrize(("chance", "kept"), [(SIGNIFICANT - 1e-3, False), (SIGNIFICANT, True)])
def test_the_probe_gives_way_to_a_gain_that_is_hardly_chance_and_to_no_other(
    photos: MakePhotos, monkeypatch: pytest.MonkeyPatch, chance: float, kept: bool
):
    """One that is kept has learnt from val too, and its temperature from photos it had not seen."""
    _, probe, targets = start_from_probe(probing(photos))
    run = probing(photos)
    before = {name: value.clone() for name, value in run.classifier.backbone.state_dict().items()}

    def gained(*_: object) -> float:
        with torch.no_grad():  # as epochs do that look better
            next(run.classifier.backbone.parameters()).add_(1)
        return chance

    monkeypatch.setattr("trainer.fitting.chance_of_gain", gained)
    run, fitted = fit(run)
    assert fitted.how.startswith("linear probe" if kept else "fine-tuned")
    assert [epoch.epoch for epoch in fitted.history] == [0, 1]
    head = run.classifier.head.weight.detach().numpy()
    assert np.allclose(head, probe.head.weight, rtol=1e-3) is kept
    if kept:
        after = run.classifier.backbone.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        expected = fit_temperature(probe.out_of_fold, targets)
        assert fitted.temperature == pytest.approx(expected, rel=1e-3)


def test_the_head_that_fine_tuning_begins_with_has_not_seen_val(photos: MakePhotos):
    run = probing(photos)
    run, probe, targets = start_from_probe(run)
    labels = run.data.targets("train")
    assert len(targets) == len(labels) + len(run.data.targets("val"))
    images = plain(run.data.squares, run.data.splits["train"])
    with torch.no_grad():
        views = [
            run.classifier.features(each).double().numpy() for each in (images, images.flip(3))
        ]
    rows, head = np.concatenate(views), run.classifier.head
    with torch.no_grad():
        said = head(torch.from_numpy(rows).float()).numpy()
    of_train = fit_head(rows, np.tile(labels, 2), 2, probe.penalty).logits(rows)
    scale = np.abs(of_train).max()
    assert np.abs(said - of_train).max() < 0.02 * scale
    assert np.abs(said - probe.head.logits(rows)).max() > 0.05 * scale
