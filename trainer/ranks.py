"""Which of several processes this is that torchrun started, or a scheduler as it does."""

from collections.abc import Mapping

from serving.errors import InvalidRequest


def place_of(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """This process's number, from 0, and how many there are, by RANK and WORLD_SIZE; None: it was
    started alone, for with others there is a MASTER_ADDR too. Raises InvalidRequest."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return None
    rank, size = environment["RANK"], environment["WORLD_SIZE"]
    try:
        place = int(rank), int(size)
    except ValueError:
        place = 0, 0
    if not 0 <= place[0] < place[1]:
        raise InvalidRequest(f"RANK must be 0 to WORLD_SIZE - 1, got {rank!r} and {size!r}")
    return place
