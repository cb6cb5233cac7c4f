"""The Hugging Face Hub, asked once before timm downloads from it.

Where it can't be reached, its client tries each file again for half a minute, and timm two files.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_ANSWERS_WITHIN_S = 10.0


@contextmanager
def reachable_hub(repository: str) -> Iterator[str | None]:
    """Why the hub can't be reached, or None; if so, its cache is all that downloads look at."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    # Its notes on each attempt; what comes of them is said in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    before, problem = constants.HF_HUB_OFFLINE, None
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=_ANSWERS_WITHIN_S)
    except HfHubHTTPError:
        pass  # it answers; whether it has the weights shows when they are asked for
    except Exception as error:  # of the HTTP library, another one in each of its versions
        problem = f"{constants.ENDPOINT} can't be reached: {error}"
        constants.HF_HUB_OFFLINE = True
    try:
        yield problem
    finally:
        constants.HF_HUB_OFFLINE = before
