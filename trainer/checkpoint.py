"""The whole state of a training on disk after every epoch: a killed one goes on to the same end."""

import hashlib
import json
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from serving.errors import InvalidRequest, Unavailable, first_line
from serving.paths import exists
from serving.whole_file import remove_old, replaced, sweep

State = dict[str, torch.Tensor]

_ABANDONED_S = 7 * 86400.0  # after its last epoch: none takes so long


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the loop needs to go on after `epoch` as if it had never stopped.

    No generator's state: each epoch draws from generators seeded by the run's seed and the epoch.
    """

    epoch: int
    model: State
    optimizer: dict[str, Any]
    scaler: dict[str, Any]  # of fp16's gradients; empty otherwise
    best: State  # weights of the best epoch so far
    average: State  # of the weights, where one is kept
    average_steps: int
    parts: int  # in which a batch is computed: what batch norm and dropout do depends on it
    logits: dict[str, torch.Tensor]  # on val: "first" and "best"
    history: list[list[float | None]]  # an Epoch each


def differences(settings: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """In words, how `settings` are not those read from JSON. Those of another Pawprint differ in
    that: it may have others, and what it means by the same is not known."""
    expected = json.loads(json.dumps(settings))
    names = sorted(expected.keys() | there.keys())
    differ = [name for name in names if expected.get(name) != there.get(name)]
    return [
        f"{name} is {expected.get(name)!r}, there {there.get(name)!r}"
        for name in (["pawprint"] if "pawprint" in differ else differ)
    ]


class _Unusable(Exception):
    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


def _last_change(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its training has just ended
        return 0.0


class Checkpoints:
    """One file for a training; `settings`: all that its result depends on."""

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        *,
        tell: Callable[[str], None] | None = None,
        started: float | None = None,
    ) -> None:
        """name: the model's; started: when this process began, on the monotonic clock; None: now.

        With `tell` nobody has asked for checkpoints: it is told of one that can't be used or
        written, and the training does without; each settings have a file of their own. Otherwise
        there is one for a model, and these are errors.
        """
        self._settings = dict(settings)
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()
        self.path = folder / (f"{name}.ckpt" if tell is None else f"{name}-{digest[:12]}.ckpt")
        self._of_model = re.compile(re.escape(name) + r"-[0-9a-f]{12}\.ckpt")
        self._weights = folder / f"{name}.best.safetensors"
        self._tell = tell
        self._started = time.monotonic() if started is None else started
        self.earlier_s = 0.0  # that processes before this one took, up to the checkpoint loaded
        self._last_s: float | None = None  # what the file says: no two trainings take the same
        self._note = self.path.with_name(f"{self.path.name}.published")

    def check(self) -> None:
        """Raises InvalidRequest if no file can be made in the folder."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InvalidRequest(
                f"checkpoints can't be written to {folder} ({error.strerror}); give a folder that "
                "can be written to"
            ) from error

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none.

        One that is damaged, or of other settings, raises InvalidRequest; or, where nobody has asked
        for it, is told of.
        """
        sweep(self.path)
        sweep(self._note)
        try:
            if exists(self.path):
                return self._read(self.path)
            if self._tell is not None and (others := self._others()):
                self._read(others[0])  # says in what it differs
        except _Unusable as error:
            if self._tell is None:
                raise InvalidRequest(f"{error}; {error.remedy}") from error
            self._tell(f"Starting anew: {error}")
        return None

    def _others(self) -> list[Path]:
        """Those of trainings of this model that had other settings, the newest first. Of them one
        is kept, and those that may be of trainings that still run.
        """
        others = [p for p in self.path.parent.glob("*.ckpt") if self._of_model.fullmatch(p.name)]
        others.sort(key=_last_change, reverse=True)
        remove_old(others[1:], _ABANDONED_S)
        return others

    def _read(self, path: Path) -> Checkpoint:
        """Raises _Unusable."""
        try:
            with zipfile.ZipFile(path) as file:
                if file.testzip() is not None:  # torch itself looks at no checksum
                    raise zipfile.BadZipFile
            content = torch.load(path, map_location="cpu", weights_only=True)
            settings = json.loads(content.pop("settings"))
            if different := differences(self._settings, settings):  # perhaps in its parts, too
                raise _Unusable(
                    f"the checkpoint {path} is of a training with other settings: "
                    f"{'; '.join(different)}",
                    "go on with those, or delete it to start anew",
                )
            seconds = float(content.pop("seconds"))
            found = Checkpoint(**content)
        except _Unusable:
            raise
        except Exception as error:  # torch.load raises almost anything on other bytes
            raise _Unusable(
                f"the checkpoint {path} can't be read", "delete it to start anew"
            ) from error
        self.earlier_s = self._last_s = seconds
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the file in one step. Raises Unavailable if it can't, where that was asked for;
        the last one is kept.
        """
        seconds = self.earlier_s + time.monotonic() - self._started
        settings = json.dumps(self._settings)
        content = {**vars(checkpoint), "settings": settings, "seconds": seconds}
        try:
            with replaced(self.path) as file:
                torch.save(content, file)
            self._last_s = seconds
        except (OSError, RuntimeError) as error:
            # A write that failed ends torch's own writer with another error.
            known = error.__context__ if isinstance(error.__context__, OSError) else error
            why = getattr(known, "strerror", None) or first_line(known)
            said = (
                f"the checkpoint of epoch {checkpoint.epoch} can't be written to {self.path.parent}"
                f" ({why})"
            )
            if self._tell is not None:
                self._tell(f"Warning: {said}; the training goes on")
                return
            last = "it goes on from the one before" if self.path.exists() else "it starts anew"
            raise Unavailable(f"{said}. Put that right and run the same command: {last}") from known

    def save_weights(self, state: Mapping[str, torch.Tensor]) -> Path:
        """Weights alone, under the names that --weights takes, in one step. Raises OSError."""
        with replaced(self._weights) as file:
            file.write(save({name: value.contiguous() for name, value in state.items()}))
        return self._weights

    def note(self, version: int, digest: str) -> None:
        """Before the model is published, as which version and with which manifest: who is killed
        before the checkpoint is deleted finds by that what has been done. Raises OSError."""
        if self._last_s is not None:
            with replaced(self._note) as file:
                file.write(json.dumps([self._last_s, version, digest]).encode())

    def noted(self) -> tuple[int, str] | None:
        """What a process before this one has noted of the training that was gone on with."""
        try:
            seconds, version, digest = json.loads(self._note.read_bytes())
        except (OSError, ValueError):
            return None
        return (version, digest) if seconds == self._last_s else None

    def delete(self) -> None:
        """Once the model is published."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)  # last: without its checkpoint it says nothing
