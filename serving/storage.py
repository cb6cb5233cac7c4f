"""Where a model repository is: a folder, or a prefix of a bucket (s3://, gs://, az://)."""

import os
from pathlib import Path

from serving.blob_cache import LIMIT, default_cache, limit_of
from serving.bucket import SCHEMES, Bucket
from serving.errors import InvalidRequest, NotFound
from serving.paths import is_dir
from serving.remote_repository import RemoteRepository
from serving.repository import Repository


def open_repository(location: str | Path, *, must_exist: bool = False) -> Repository:
    """Files of a bucket are kept in PAWPRINT_CACHE (default: ~/.cache/pawprint), of which they take
    PAWPRINT_CACHE_GB at most.

    Raises InvalidRequest for a location of no known kind, Unavailable if the store can't be used,
    NotFound for a folder that is not there, if it must be.
    """
    text = str(location)
    if not text:  # of a shell's variable that is not set
        raise InvalidRequest("the place of a model repository is empty; the folder you are in is .")
    if "://" in text:
        environment = os.environ
        limit = limit_of(environment, LIMIT)
        return RemoteRepository(Bucket(text), default_cache(environment), limit)
    if scheme := next((s for s in SCHEMES if text.startswith(f"{s}:/")), None):
        raise InvalidRequest(f"{text}: a bucket is named {scheme}://BUCKET/PREFIX")
    folder = Path(location)
    if must_exist and not is_dir(folder):
        raise NotFound(f"no model repository at {folder}; see --models")
    return Repository(folder)
