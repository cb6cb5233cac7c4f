"""What several starts of a batch job agree on, and what they refuse."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.batch_plan import PLAN, Plan, agree
from serving.errors import InvalidRequest
from serving.places import Folder, Place, place
from serving.whole_file import replaced
from tests.photos import jpeg
from tests.serving.batch_jobs import plan_of

LABELS = 3


@pytest.fixture
def photos(tmp_path: Path) -> Folder:
    (tmp_path / "photos").mkdir()
    for n in range(3):
        (tmp_path / f"photos/{n}.jpg").write_bytes(jpeg(seed=n))
    return Folder(tmp_path / "photos")


def begin(wanted: Plan, out: Place) -> Plan:
    return agree(wanted, out, labels=LABELS)


def test_another_job_in_the_same_place_is_refused(photos: Folder, tmp_path: Path) -> None:
    out = Folder(tmp_path / "out")
    first = plan_of(photos)
    assert begin(first, out) == first
    assert begin(plan_of(photos, version=2), out) == first
    with pytest.raises(InvalidRequest, match="another version: 1, not 2"):
        begin(plan_of(photos, version=2, asked="2"), out)
    (tmp_path / "photos/3.jpg").write_bytes(jpeg())
    with pytest.raises(InvalidRequest, match=r"no longer those .* \(then 3, now 4\)"):
        begin(plan_of(photos), out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.doc").write_text("")
    with pytest.raises(InvalidRequest, match="must be empty"):
        begin(first, Folder(tmp_path / "full"))


def test_a_job_that_began_with_an_alias_goes_on_where_that_has_moved(
    photos: Folder, tmp_path: Path
) -> None:
    """As a Job's pod does that is started anew after a promotion."""
    out = Folder(tmp_path / "out")
    first = plan_of(photos, asked="stable")
    assert begin(first, out) == first
    assert begin(plan_of(photos, asked="stable", version=2), out) == first
    for same in ("1", "canary"):
        assert begin(plan_of(photos, asked=same), out) == first
    for other in ("2", "canary"):
        with pytest.raises(InvalidRequest, match="another version: 1, not 2"):
            begin(plan_of(photos, asked=other, version=2), out)


@pytest.mark.parametrize("damaged", [b"", b"{", b"[" * 100_000, b"\xff\xfe\x00"])
def test_a_plan_that_is_damaged_is_told(photos: Folder, tmp_path: Path, damaged: bytes) -> None:
    out = Folder(tmp_path / "out")
    out.write(PLAN, damaged)
    with pytest.raises(InvalidRequest, match="can't be read: .*; choose another --out"):
        begin(plan_of(photos), out)


def test_a_job_of_another_release_is_told_as_such(photos: Folder, tmp_path: Path) -> None:
    out = Folder(tmp_path / "out")
    begin(plan_of(photos), out)
    plan = json.loads(out.read(PLAN))
    del plan["asked"]
    out.write(PLAN, json.dumps(plan).encode())
    with pytest.raises(InvalidRequest, match="begun by another release .*; go on with that"):
        begin(plan_of(photos), out)


def test_a_job_begun_without_familiarity_goes_on_without(photos: Folder, tmp_path: Path) -> None:
    """By a release that did not know it: all its parts have the same columns."""
    out = Folder(tmp_path / "out")
    assert begin(plan_of(photos), out).familiarity
    plan = json.loads(out.read(PLAN))
    del plan["familiarity"]
    out.write(PLAN, json.dumps(plan).encode())
    assert begin(plan_of(photos), out) == plan_of(photos, familiarity=False)


def test_all_that_start_at_once_work_by_one_plan(photos: Folder, tmp_path: Path) -> None:
    """Though the server's default version moves between them."""
    wanted = [plan_of(photos, version=version) for version in range(1, 5)]
    with ThreadPoolExecutor(len(wanted)) as pool:
        for n in range(100):
            out = Folder(tmp_path / f"out-{n}")
            plans = set(pool.map(begin, wanted, [out] * len(wanted)))
            assert len(plans) == 1 and out.files() == {PLAN}


def test_without_hard_links_a_job_is_begun_all_the_same(
    photos: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))  # as exFAT and SMB say

    monkeypatch.setattr(os, "link", refused)
    out = Folder(tmp_path / "out")
    assert begin(plan_of(photos), out) == plan_of(photos)
    assert not out.create(PLAN, b"{}") and begin(plan_of(photos), out) == plan_of(photos)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PLAN]


def test_what_a_kill_left_half_written_is_in_nobodys_way(photos: Folder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replaced(out / PLAN):
        assert len(list(out.iterdir())) == 1
        assert begin(plan_of(photos), Folder(out)) == plan_of(photos)


def test_a_photo_with_another_content_makes_another_job(photos: Folder, tmp_path: Path) -> None:
    out, photo = Folder(tmp_path / "out"), tmp_path / "photos/1.jpg"
    begin(plan_of(photos), out)
    data, status = photo.read_bytes(), photo.stat()
    photo.write_bytes(data[::-1])
    with pytest.raises(InvalidRequest, match="the photos are no longer those"):
        begin(plan_of(photos), out)
    photo.write_bytes(data + b"more")
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InvalidRequest, match="the photos are no longer those"):
        begin(plan_of(photos), out)
    photo.write_bytes(data)  # a copy with its time is the same photo
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert begin(plan_of(photos), out) == plan_of(photos)


@pytest.mark.parametrize("top_k", [-1, LABELS + 1])
def test_a_number_of_labels_that_there_are_not_begins_no_job(
    photos: Folder, tmp_path: Path, top_k: int
) -> None:
    out = Folder(tmp_path / "out")
    with pytest.raises(InvalidRequest, match=f"--top-k must be 0 to 3, .* got {top_k}"):
        begin(plan_of(photos, top_k=top_k), out)
    assert out.files() == set()


@pytest.mark.parametrize("top_k", [0, LABELS])
def test_a_job_may_ask_for_all_labels_or_leave_it_open(
    photos: Folder, tmp_path: Path, top_k: int
) -> None:
    assert begin(plan_of(photos, top_k=top_k), Folder(tmp_path / "out")).top_k == top_k


def test_a_slash_at_the_end_makes_no_other_place() -> None:
    assert place("photos/").location == place("photos").location == "photos"
    assert place("s3://bucket/photos/").location == place("s3://bucket/photos").location
