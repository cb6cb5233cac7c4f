"""A training in MLflow, where MLFLOW_TRACKING_URI says: settings, epochs, test figures, version.

Needs the extra `mlflow`. The training never fails for it: what can't be sent is said in one line.
"""

import dataclasses
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from serving.errors import first_line, to_install
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.results import Published
from trainer.tracking import figures_of, figures_on_test
from trainer.training import Epoch

_URI, _EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
# MLflow itself would try for minutes, with a training waiting. What the user sets wins.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


class MlflowRun:
    """One run, ended with the `with` block; after the first thing that can't be sent nothing more
    is tried, in the runs below the same `parent` neither."""

    def __init__(
        self, config: TrainConfig, console: Console, name: str, parent: "MlflowRun | None" = None
    ) -> None:
        self._console, self._parent = console, parent
        self._open: bool = parent is None or parent._open
        self._try(lambda: self._start(config, name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end("FINISHED")
        else:
            self.end("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def epoch(self, epoch: Epoch) -> None:
        self._try(lambda: self._send(figures_of(epoch), epoch.epoch))

    def published(self, published: Published) -> None:
        """The figures on the test photos, and the version as tags."""
        manifest = published.manifest
        figures = figures_on_test(manifest.variants["fp32"].metrics)
        self._try(lambda: self._send(figures, 0))
        tags = {"version": f"{manifest.name}/{manifest.version}", "place": published.place}
        self._try(lambda: self._tag(tags | {"trained": published.how}))

    def end(self, status: str) -> None:
        """The first call counts."""
        self._try(lambda: self._client.set_terminated(self._id, status))
        self._open = False

    def _start(self, config: TrainConfig, name: str) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=os.environ[_URI])
        for setting, value in _PATIENCE.items():
            os.environ.setdefault(setting, value)
        within = os.environ.get(_EXPERIMENT, config.name)
        known = self._client.get_experiment_by_name(within)
        experiment = known.experiment_id if known else self._client.create_experiment(within)
        tags = {} if self._parent is None else {"mlflow.parentRunId": self._parent._id}
        self._id: str = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        params = [Param(k, str(v)) for k, v in dataclasses.asdict(config).items()]
        self._client.log_batch(self._id, params=params)

    def _send(self, figures: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _tag(self, tags: dict[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_tag(self._id, f"pawprint.{name}", value)

    def _try(self, send: Callable[[], object]) -> None:
        if not self._open:
            return
        try:
            send()
        except ImportError as error:
            self._give_up(f"{first_line(error)}; {to_install('mlflow')}")
        except Exception as error:  # MLflow, its stores and the network raise what they like
            self._give_up(first_line(error))

    def _give_up(self, reason: str) -> None:
        self._open = False
        if self._parent is not None:
            self._parent._open = False
        said = f"{os.environ[_URI]}: {reason[:300]}"
        said = re.sub(r"//[^/@\s]*@", "//", said)  # a name and password
        self._console.line(f"Nothing more goes to MLflow at {said}")


def mlflow_run(
    config: TrainConfig, console: Console, name: str
) -> AbstractContextManager[MlflowRun | None]:
    """A run of this name; None where MLFLOW_TRACKING_URI is not set."""
    return MlflowRun(config, console, name) if os.environ.get(_URI) else nullcontext()
