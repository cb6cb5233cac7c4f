"""The scripts of this folder, a few seconds each. The whole of them: docs/serving.md, Faults."""

from pathlib import Path

import pytest

from tests.faults.cancelled import cancelled
from tests.faults.connections import connections
from tests.faults.fuzz import fuzz
from tests.faults.killed_worker import killed_worker
from tests.faults.model_control import controlled
from tests.faults.soak import soak


async def test_broken_photos_and_messages_are_the_callers_mistake(tmp_path: Path) -> None:
    assert await fuzz(tmp_path, photo_count=400, message_count=400, seed=1)


async def test_half_of_the_callers_leave_and_the_others_are_answered(tmp_path: Path) -> None:
    assert await cancelled(tmp_path, calls=400, seed=1)


async def test_a_soak_of_twelve_seconds_counts_every_answer(tmp_path: Path) -> None:
    assert await soak(tmp_path, seconds=12, rate=20)


@pytest.mark.parametrize("operations", [10, pytest.param(40, marks=pytest.mark.slow)])
async def test_operations_under_callers_are_as_the_rules_say(
    tmp_path: Path, operations: int
) -> None:
    assert await controlled(tmp_path, operations=operations, seed=1)


@pytest.mark.slow
async def test_a_killed_worker_costs_its_own_calls_alone(tmp_path: Path) -> None:
    assert await killed_worker(tmp_path, kills=2)


@pytest.mark.slow
async def test_slow_vanished_and_idle_callers_cost_the_others_little(tmp_path: Path) -> None:
    assert await connections(tmp_path, count=200)
