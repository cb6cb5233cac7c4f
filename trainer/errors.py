"""What training can end with, beside the exceptions of serving.errors."""

from serving.errors import PawprintError


class InvalidData(PawprintError):
    """The folder of photos can't be trained on; the message says why."""


class FailedCheck(PawprintError):
    """A result must not be published, or not be passed on: the loss is no number, the exported file
    differs, a version has no photo right."""
