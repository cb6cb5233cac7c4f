"""Who goes first where there are more threads than cores."""

import os
import sys

# A third of the event loop's weight, in Linux's scheduler.
_NICER = 5


def go_behind_the_event_loop() -> None:
    """Call it in a thread that computes: from then on the calling thread comes after the loop.

    Each call needs the loop for a fraction of a millisecond only, but under overload that is what
    answers the refusals: on two cores, as one of five threads that want them, it fell seconds
    behind (benchmarks/overload.py). Elsewhere than on Linux this would be of the whole process.
    """
    if sys.platform == "linux":
        os.nice(_NICER)
