"""Where the processes of one attempt find each other.

When torchrun starts the processes of a training again it keeps its store, in which the addresses of
those that died still stand; a process that reads them can't reach anybody. So each attempt has a
part of the store to itself, which its first process names: it answers each of the others by a word
that is new each time, so none takes an old answer for its own.
"""

import os
import threading
import time
import uuid
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import DistError
from torch.distributed.rendezvous import rendezvous

from serving.errors import Unavailable, first_line
from trainer.errors import FailedCheck
from trainer.ranks import meeting_place

PATIENCE_S = 600.0
_POLL_S = 0.05


def meet() -> tuple[Store, Store, int, int]:
    """The job's store, a part of it of this attempt's own, this process's rank, and how many there
    are.

    As RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment say. Raises FailedCheck if
    not all come, Unavailable if there is no way to the first process, InvalidRequest.
    """
    place = meeting_place(os.environ)
    try:
        return _meet()
    except DistError as error:
        raise Unavailable(
            f"the processes can't meet at {place} (MASTER_ADDR, MASTER_PORT): {first_line(error)}"
        ) from error


def _meet() -> tuple[Store, Store, int, int]:
    store, rank, size = _first_process()
    own = uuid.uuid4().hex
    if rank:
        store.set(_came(rank), own)
        name = store.get(_welcome(own)).decode()  # waits for it
        store.set(_there(name, rank), "")
    else:
        name = f"pawprint/{own}"
        _welcome_all(store, name, size)
    return store, PrefixStore(name, store), rank, size


def _first_process() -> tuple[Store, int, int]:
    """Its store, once it is there; sought in a thread, as C that waits heeds no Ctrl-C."""
    found: list[tuple[Store, int, int]] = []
    failed: list[BaseException] = []

    def seek() -> None:
        try:
            found.append(next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE_S))))
        except BaseException as error:
            failed.append(error)

    seeking = threading.Thread(target=seek, name="rendezvous", daemon=True)
    seeking.start()
    seeking.join()
    if failed:
        raise failed[0]
    return found[0]


def _welcome_all(store: Store, name: str, size: int) -> None:
    absent, until = set(range(1, size)), time.monotonic() + PATIENCE_S
    while absent:
        for rank in tuple(absent):
            if store.check([_there(name, rank)]):
                absent.remove(rank)
            elif store.check([_came(rank)]):  # perhaps one that has died: it is asked again
                store.set(_welcome(store.get(_came(rank)).decode()), name)
        if time.monotonic() > until:
            raise FailedCheck(f"of {size} processes {len(absent)} did not come: {sorted(absent)}")
        time.sleep(_POLL_S)


def _came(rank: int) -> str:
    return f"pawprint/came/{rank}"


def _welcome(word: str) -> str:
    return f"pawprint/welcome/{word}"


def _there(name: str, rank: int) -> str:
    return f"{name}/there/{rank}"
