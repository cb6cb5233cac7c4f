"""What training can end with, beside the exceptions of serving.errors."""

from serving.errors import PawprintError


class InvalidData(PawprintError):
    """The folder of photos can't be trained on; the message says why."""


class FailedCheck(PawprintError):
    """A result must not be published: the loss is no number, or the exported file differs."""
