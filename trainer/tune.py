"""Hyperparameter search with Optuna: settings tried on val, the test photos left alone.

Kept in a journal, a file of lines that is only ever added to: it needs no database, and a killed
process leaves it whole. What a trial tries follows from the seed, its number and the trials before
it, so a search that was stopped goes on as if it had not been. Needs the extra `tune`.
"""

import copy
import dataclasses
import glob
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator

from serving.durable import replace_file
from serving.errors import InvalidRequest
from serving.whole_file import names_disk
from trainer.alone import only_one
from trainer.checkpoint import differences
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import PhotoData
from trainer.determinism import deterministic
from trainer.distributed import ALONE
from trainer.errors import FailedCheck
from trainer.figures import line_plot
from trainer.fitting import freeze_early_stages, make_learner, start_from_probe
from trainer.instead import import_optuna
from trainer.mlflow_run import MlflowRun, mlflow_run
from trainer.preparing import Run, decisive_settings, prepare
from trainer.search_space import draw, searched, start
from trainer.split import Ints
from trainer.training import Epoch, FineTuned, best_of, fine_tune, measure, no_number

_SHOWN = 5  # of the table
_KILLED = "killed"
_VERSIONS = ("teacher", "split_like")  # settings that name one


def tune(
    given: Mapping[str, Any], config: TrainConfig, trials: int, console: Console
) -> TrainConfig:
    """`config` with the best found for what is not `given`, after `trials` in all of this search.

    <name>-tuned.toml (for --config), <name>-tuning.json and .png lie in the model repository, the
    search itself in its .tune/; of a repository in a bucket, in the folder on this machine that
    stands for it. Raises PawprintError.
    """
    optuna = import_optuna()
    names = searched(given)
    with deterministic(config.deterministic):
        run = prepare(config, console, ALONE)
        folder = run.repository.root / ".tune"
        journal = folder / f"{config.name}.journal"
        with searching(folder, config.name), names_disk(folder):
            study = _open(journal, run, names)
            todo = trials - len(_finished(study))
            if todo > 0:
                if config.probes:
                    run, *_ = start_from_probe(run)
                with mlflow_run(run.config, console, f"{config.name} tuning") as recorded:
                    for _ in range(todo):
                        _try(study, run, names, trials, recorded)
            done = _finished(study)
        complete = [t for t in done if t.state == optuna.trial.TrialState.COMPLETE]
        if not complete:
            last = done[-1].user_attrs.get("error", "")
            raise FailedCheck(
                f"none of {len(done)} trials came to an end; the last: {last}. For other settings "
                f"delete {journal}; with these, a larger --tune tries more"
            )
        complete = best_first(complete)
        found = dict(complete[0].user_attrs["settings"])
        # Another version of that name may be published before the best is trained.
        found |= {name: getattr(run.config, name) for name in _VERSIONS if given.get(name)}
        _write(run, done, complete, {**given, **found})
    return dataclasses.replace(config, **found)


def score(epoch: Epoch, least: float) -> float:
    """Accuracy on val (mean recall, where classes are balanced); equal ones are told apart by the
    loss, by less than `least`, what one photo counts.

    Accuracy is what is wanted, but takes few values on few photos; a search by loss alone would
    prefer the net that is seldom sure.
    """
    loss = epoch.val_loss
    return epoch.judged - loss / (1 + loss) * least / 2


def least_of(targets: Ints, balance: str) -> float:
    """What one photo of val counts in what epochs are judged by; `targets` int64 [n] of val.

    Of the mean recall, one of the most frequent class.
    """
    if balance == "none":
        return 1 / len(targets)
    counts = np.bincount(targets)
    return float(1 / (np.sum(counts > 0) * counts.max()))


def best_first(complete: Sequence[Any]) -> list[Any]:
    """Trials by what they reach on val, and equal ones by the loss. `score` alone won't do: two
    mean recalls may differ by less than what one photo counts."""

    def worth(trial: Any) -> tuple[float, float]:
        best = Epoch(**trial.user_attrs["best"])
        return best.judged, -best.val_loss

    return sorted(complete, key=worth, reverse=True)


def searching(folder: Path, name: str) -> AbstractContextManager[None]:
    """While no other process searches: a trial that still runs is then one of a killed process."""
    return only_one(folder / f"{name}.lock", f"tuning {name}")


def _mend(path: Path) -> None:
    """For a journal that no process has open: what a killed one has left beside it would hold up
    Optuna, for ever where the path is relative, and so would half of the last line."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.lock*"):
        left.unlink()
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def _open(path: Path, run: Run, names: tuple[str, ...]) -> Any:
    """The study in `path`, new or gone on with. Raises InvalidRequest if its settings differ, or it
    is damaged."""
    optuna = import_optuna()
    _mend(path)
    journal = optuna.storages.journal
    # The first epochs say little; nor does a median of few trials.
    warm = max(1, run.config.epochs // 3)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=warm)
    try:
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal.JournalFileBackend(str(path))),
            study_name=run.config.name,
            direction="maximize",
            load_if_exists=True,
            pruner=pruner,
        )
    except OSError:
        raise
    except Exception as error:  # Optuna raises almost anything on other lines
        raise InvalidRequest(
            f"the search in {path} can't be read; delete it to start anew"
        ) from error
    settings = decisive_settings(run.classifier, run.data, run.config, run.teacher)
    settings["searched"] = list(names)
    known = study.user_attrs.get("settings")
    if known is None:
        study.set_user_attr("settings", json.loads(json.dumps(settings)))
    elif different := differences(settings, known):
        raise InvalidRequest(
            f"the search in {path} is of other settings: {'; '.join(different)}; go on with "
            "those, or delete it to start anew"
        )
    states = optuna.trial.TrialState
    for trial in study.trials:
        if trial.state == states.RUNNING:  # the next one draws the same
            study.set_user_attr(_KILLED, [*study.user_attrs.get(_KILLED, []), trial.number])
            study.tell(trial.number, state=states.FAIL)
    if not _finished(study) and not any(trial.state == states.WAITING for trial in study.trials):
        study.enqueue_trial(start(names, run.config))
    return study


def _finished(study: Any) -> list[Any]:
    """The trials that count: each that ended, pruned and failed ones too, but for killed ones."""
    killed = study.user_attrs.get(_KILLED, [])
    return [t for t in study.trials if t.state.is_finished() and t.number not in killed]


def _try(
    study: Any, run: Run, names: tuple[str, ...], trials: int, search: MlflowRun | None
) -> None:
    """One trial more, from the net as `run` has it, which is left as it is."""
    optuna, console = import_optuna(), run.console
    number = len(_finished(study)) + 1
    (seed,) = np.random.SeedSequence([run.config.seed, number]).generate_state(1).tolist()
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    trial = study.ask()
    settings = draw(trial, names, run.config)
    trial.set_user_attr("settings", settings)
    least = least_of(run.data.targets("val"), run.config.balance)
    title = f"Trial {number}/{trials}"
    console.line(f"{title}: {_in_words(settings)}")
    config = dataclasses.replace(run.config, **settings)
    recorded = None if search is None else MlflowRun(config, console, title, search)

    def report(epoch: Epoch) -> None:
        if not np.isfinite(epoch.val_loss):
            where = f"on val after epoch {epoch.epoch}"
            raise FailedCheck(no_number(epoch.val_loss, where, config, None, run.classifier))
        if recorded is not None:
            recorded.epoch(epoch)
        if epoch.epoch == 0:
            return  # where all trials start: it says nothing of their settings
        trial.report(score(epoch, least), epoch.epoch)
        if epoch.epoch < config.epochs and trial.should_prune():
            if recorded is not None:
                recorded.end("KILLED")
            raise optuna.TrialPruned(f"pruned after epoch {epoch.epoch}")

    try:
        own = dataclasses.replace(run, classifier=copy.deepcopy(run.classifier), config=config)
        freeze_early_stages(own)
        torch.manual_seed(config.seed)
        learner = make_learner(own)
        photos = config.epochs * len(run.data.splits["train"])
        with recorded or nullcontext(), console.bar(title, photos) as advance:
            result = fine_tune(learner, report, advance)
        best = best_of(result.history[1:])
        if config.wise_ft:
            best = _as_published(result, best, run.data, config)
    except optuna.TrialPruned as pruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        console.line(f"  {pruned}")
    except FailedCheck as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        console.line(f"  failed: {error}")
    else:
        trial.set_user_attr("best", dataclasses.asdict(best))
        study.tell(trial, score(best, least))
        console.line(
            f"  val {_measure(config)} {best.judged:.4f}  val loss {best.val_loss:.4f}  "
            f"epoch {best.epoch}"
        )


def _as_published(result: FineTuned, best: Epoch, data: PhotoData, config: TrainConfig) -> Epoch:
    """The figures of the net between the probe and `best` that wise_ft would publish."""
    train = (best.train_loss, best.train_accuracy)
    return measure(best.epoch, train, result.val_logits, data, None, config.balance != "none")


def _write(run: Run, done: list[Any], complete: list[Any], found: Mapping[str, Any]) -> None:
    place = run.repository.root / run.config.name
    rows = [
        {"trial": i + 1, "state": trial.state.name.lower(), **trial.user_attrs}
        for i, trial in enumerate(done)
    ]
    replace_file(Path(f"{place}-tuning.json"), (json.dumps(rows, indent=1) + "\n").encode())
    toml = "".join(f"{name} = {_toml(value)}\n" for name, value in found.items())
    replace_file(Path(f"{place}-tuned.toml"), toml.encode())  # half of it would be settings, too
    at = {trial.number: i + 1 for i, trial in enumerate(done)}
    judged = {t.number: Epoch(**t.user_attrs["best"]).judged for t in complete}
    numbers, shares = zip(*sorted((at[n], share) for n, share in judged.items()), strict=True)
    with line_plot(Path(f"{place}-tuning.png")) as axes:
        axes.plot(numbers, shares, "o", label="trial")
        axes.step(numbers, np.maximum.accumulate(shares), where="post", label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="trial", ylabel=f"{_measure(run.config)} on val")
    run.console.table(
        f"Best trials, {_measure(run.config)} on val",
        [
            (f"{judged[trial.number]:.4f}", _in_words(trial.user_attrs["settings"]))
            for trial in complete[:_SHOWN]
        ],
    )
    run.console.line(f"Settings: train --config {place}-tuned.toml")


def _measure(config: TrainConfig) -> str:
    """What Epoch.judged is called."""
    return "accuracy" if config.balance == "none" else "mean recall"


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in settings.items()
    )


def _toml(value: Any) -> str:
    """As TOML 1.0 has it; JSON's strings, numbers and booleans are written alike."""
    return json.dumps(value, ensure_ascii=False)
