"""The figures of a training while it runs, for TensorBoard."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from serving.modelspec import Metrics
from trainer.training import Epoch

_ENDS_WITHIN_S = 1.0

Track = Callable[[Mapping[str, float], int], None]  # figures by name, and the epoch


def figures_of(epoch: Epoch) -> dict[str, float]:
    """What there is of an epoch, by name."""
    figures = {"loss/val": epoch.val_loss, "accuracy/val": epoch.val_accuracy}
    if epoch.epoch > 0:
        figures |= {"loss/train": epoch.train_loss, "accuracy/train": epoch.train_accuracy}
    if epoch.val_mean_recall is not None:
        figures["mean recall/val"] = epoch.val_mean_recall
    if epoch.val_robust_accuracy is not None:
        figures["accuracy/val under attack"] = epoch.val_robust_accuracy
    if epoch.val_robust_recall is not None:
        figures["mean recall/val under attack"] = epoch.val_robust_recall
    return figures


def figures_on_test(metrics: Metrics) -> dict[str, float]:
    """What is followed of the published file on the test photos, by name."""
    return {f"{name}/test": getattr(metrics, name) for name in ("accuracy", "nll", "ece")}


@contextmanager
def tracked(folder: Path, name: str, say: Callable[[str], None]) -> Iterator[Track]:
    """What writes figures to a new folder of this run below `folder`/`name`.

    Nobody has asked for them: where they can't be written, that is said, and no more are.
    """
    writer: SummaryWriter | None = None

    def end(error: OSError) -> None:
        nonlocal writer
        writer = None
        say(f"Warning: no more figures for TensorBoard: {folder} can't be written to ({error})")

    def write(figures: Mapping[str, float], epoch: int) -> None:
        if writer is None:
            return
        try:
            for figure, value in figures.items():
                writer.add_scalar(figure, value, epoch)
            writer.flush()
        except OSError as error:
            end(error)

    with _without_tracebacks():
        try:
            writer = SummaryWriter(str(_new_run(folder / name)))
        except OSError as error:
            end(error)
        try:
            yield write
        finally:
            if writer is not None:
                with suppress(Exception):  # Ctrl-C may have broken its queue
                    writer.close()


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """What TensorBoard's own thread fails with, the next call of its writer raises as well."""
    others, there = threading.excepthook, threading.enumerate()

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not _of_tensorboard(failed.thread):
            others(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if _of_tensorboard(thread) and thread not in there:
                thread.join(_ENDS_WITHIN_S)  # one that has failed may not have come to the hook
        threading.excepthook = others


def _of_tensorboard(thread: threading.Thread | None) -> bool:
    return type(thread).__module__.startswith("tensorboard.")


def _new_run(folder: Path) -> Path:
    """Named by the second, and a number where another run began in it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    started = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    run, number = folder / started, 1
    while True:
        try:
            run.mkdir()
            return run
        except FileExistsError:
            number += 1
            run = folder / f"{started}-{number}"
