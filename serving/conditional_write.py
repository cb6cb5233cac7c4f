"""An object that is replaced only while it is still the one that was looked at.

Each store says so in its own way: If-Match with the object's ETag (S3, Azure), ifGenerationMatch
with its generation (Google).
"""

import json
import uuid
from typing import Any


def replace_if(scheme: str, files: Any, path: str, data: bytes, stamp: str) -> None:
    """`files`: fsspec's file system of the scheme. `stamp`: ETag or generation.

    Raises what the store's library does, for an object that has another stamp by now as well.
    """
    if scheme == "s3":
        files.pipe_file(path, data, IfMatch=stamp)
    elif scheme == "az":
        from azure.core import MatchConditions

        unchanged = MatchConditions.IfNotModified
        files.pipe_file(path, data, etag=stamp, match_condition=unchanged)
    else:
        _replace_in_google(files, path, data, stamp)


def _replace_in_google(files: Any, path: str, data: bytes, generation: str) -> None:
    """A multipart upload as gcsfs makes it; its own has this condition for new objects alone."""
    bucket, key, _ = files.split_path(path)
    mark = uuid.uuid4().hex
    body = (
        f"--{mark}\nContent-Type: application/json; charset=UTF-8\n\n{json.dumps({'name': key})}\n"
        f"--{mark}\nContent-Type: application/octet-stream\n\n".encode()
        + data
        + f"\n--{mark}--".encode()
    )
    files.call(
        "POST",
        files.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
        bucket,
        uploadType="multipart",
        ifGenerationMatch=generation,
        headers={"Content-Type": f'multipart/related; boundary="{mark}"'},
        data=body,
    )
