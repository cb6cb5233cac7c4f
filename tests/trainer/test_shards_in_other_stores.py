"""Shards on emulators of Google's and Microsoft's stores: written, listed, copied, read."""

from pathlib import Path

import fsspec.config
import pytest

from serving.bucket import Bucket
from tests.azure_store import running_azure_store
from tests.google_store import running_google_store
from tests.object_store import BUCKET
from tests.trainer.conftest import write_photos
from tests.trainer.shards import samples, write_tar
from trainer.errors import InvalidData
from trainer.listing import find_photos
from trainer.make_shards import main as make_shards


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_photos_are_those_of_the_folder_until_a_shard_is_replaced(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
):
    photos = write_photos(tmp_path / "photos", 6, ("discs", "squares"))
    place = f"{scheme}://{BUCKET}/shards"
    starting = {
        "gs": lambda: running_google_store(tmp_path),
        "az": lambda: running_azure_store(tmp_path, pytestconfig.cache),
    }
    with starting[scheme]() as store:
        store.put_into(monkeypatch)
        monkeypatch.setattr(fsspec.config, "conf", {})  # as a new process has it
        fsspec.config.set_conf_env(fsspec.config.conf)
        assert make_shards(["--data", str(photos), "--out", place]) == 0
        assert make_shards(["--data", str(photos), "--out", place]) == 2, "it is not empty now"
        expected = [(f.file, f.label, f.path.read_bytes()) for f in find_photos(photos)]
        for limit in ("0", "1"):  # without a copy, and with one
            monkeypatch.setenv("PAWPRINT_SHARD_CACHE_GB", limit)
            monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / limit))
            for pattern in ("", "/photos-*.tar", "/photos-{000000..000000}.tar"):
                found = find_photos(place + pattern)
                assert [(f.file, f.label, f.path.read_bytes()) for f in found] == expected
            copies = list((tmp_path / limit / "shards").glob("*.tar"))
            assert len(copies) == int(limit)
        with pytest.raises(InvalidData, match="no shard matches"):
            find_photos(f"{scheme}://{BUCKET}/absent")

        bucket = Bucket(f"{scheme}://{BUCKET}/other")
        for first in (0, 5):  # as long as the first one, so that the stamp alone tells
            bucket.write("a.tar", write_tar(tmp_path / "a.tar", samples(first)).read_bytes())
            keys = [found.file for found in find_photos(f"{bucket.location}/a.tar")]
            assert keys == [f"{first:06}.jpg", f"{first + 1:06}.jpg"]
