"""What is at a path, and that nothing is said of one that may not be looked at."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.paths import exists, is_dir, is_file


def test_it_says_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "lost").symlink_to("nowhere")
    for path, what in (
        (tmp_path, (True, True, False)),
        (file, (True, False, True)),
        *((tmp_path / name, (False,) * 3) for name in ("none", "file/below", "lost", "round")),
        (tmp_path / "a\0b", (False,) * 3),
    ):
        assert (exists(path), is_dir(path), is_file(path)) == what, path


@pytest.mark.parametrize("asked", [exists, is_dir, is_file])
def test_what_can_not_be_known_is_an_error(asked: Callable[[Path], bool], tmp_path: Path) -> None:
    with pytest.raises(OSError) as refused:
        asked(tmp_path / ("x" * 300))
    assert refused.value.errno == errno.ENAMETOOLONG
