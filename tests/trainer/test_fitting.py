"""The probe, and whether what is fine-tuned from it takes its place."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.conftest import MakePhotos
from tests.trainer.test_training import Run
from trainer.calibration import fit_temperature
from trainer.console import Console
from trainer.features import plain
from trainer.fitting import SIGNIFICANT, fit, start_from_probe
from trainer.probe import fit_head


def probing(photos: MakePhotos) -> Any:
    """What trainer.fitting needs of a run."""
    run: Any = Run(photos, "tiny", epochs=1, batch_size=8, thaw=1.0, val_fraction=0.3)
    run.console, run.track, run.recorded = Console(to_stderr=True), None, None
    return run


@pytest.mark.parametrize(("chance", "kept"), [(SIGNIFICANT - 1e-3, False), (SIGNIFICANT, True)])
def test_the_probe_gives_way_to_a_gain_that_is_hardly_chance_and_to_no_other(
    photos: MakePhotos, monkeypatch: pytest.MonkeyPatch, chance: float, kept: bool
):
    """One that is kept has learnt from val too, and its temperature from photos it had not seen."""
    probe, targets = start_from_probe(probing(photos))
    run = probing(photos)
    before = {name: value.clone() for name, value in run.classifier.backbone.state_dict().items()}

    def gained(*_: object) -> float:
        with torch.no_grad():  # as epochs do that look better
            next(run.classifier.backbone.parameters()).add_(1)
        return chance

    monkeypatch.setattr("trainer.fitting.chance_of_gain", gained)
    fitted = fit(run)
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
    probe, targets = start_from_probe(run)
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
