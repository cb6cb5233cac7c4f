"""The scripts of this folder, a few seconds each. The whole of them: docs/serving.md, Faults."""

from pathlib import Path

from tests.faults.cancelled import cancelled
from tests.faults.fuzz import fuzz


async def test_broken_photos_and_messages_are_the_callers_mistake(tmp_path: Path) -> None:
    assert await fuzz(tmp_path, photo_count=400, message_count=400, seed=1)


async def test_half_of_the_callers_leave_and_the_others_are_answered(tmp_path: Path) -> None:
    assert await cancelled(tmp_path, calls=400, seed=1)
