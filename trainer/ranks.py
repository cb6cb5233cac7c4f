"""Which of several processes this is that torchrun started, or a scheduler as it does."""

from collections.abc import Mapping

from serving.errors import InvalidRequest


def place_of(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """This process's number, from 0, and how many there are, by RANK and WORLD_SIZE; None: it was
    started alone, for with others there is a MASTER_ADDR too. Raises InvalidRequest."""
    processes_here(environment)  # which is read again when hours of work may be done
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return None
    rank, size = environment["RANK"], environment["WORLD_SIZE"]
    place = _number(rank), _number(size)
    if not 0 <= place[0] < place[1]:
        raise InvalidRequest(f"RANK must be 0 to WORLD_SIZE - 1, got {rank!r} and {size!r}")
    return place


def processes_here(environment: Mapping[str, str]) -> int:
    """How many of them this machine has, by LOCAL_WORLD_SIZE. Raises InvalidRequest."""
    text = environment.get("LOCAL_WORLD_SIZE", "1")
    if _number(text) < 1:
        raise InvalidRequest(f"LOCAL_WORLD_SIZE must be 1 or more, got {text!r}")
    return _number(text)


def gpu_of(environment: Mapping[str, str], gpus: int) -> int:
    """This process's own of the `gpus` here, by LOCAL_RANK. Raises InvalidRequest."""
    text = environment.get("LOCAL_RANK", "0")
    if not 0 <= _number(text) < gpus:
        raise InvalidRequest(
            f"LOCAL_RANK must be 0 to {gpus - 1}, as each process needs a GPU of its own, got "
            f"{text!r}; start fewer here (--nproc-per-node {gpus})"
        )
    return _number(text)


def meeting_place(environment: Mapping[str, str]) -> str:
    """The address at which they meet, by MASTER_ADDR and MASTER_PORT. Raises InvalidRequest."""
    host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if not host or not 1 <= _number(port) <= 65535:
        raise InvalidRequest(
            "MASTER_ADDR must be the host of the process of RANK 0 and MASTER_PORT a free port of "
            f"it, 1 to 65535, got {host!r} and {port!r}"
        )
    return f"{host}:{port}"


def _number(text: str) -> int:
    """-1 where it is none."""
    try:
        return int(text)
    except ValueError:
        return -1
