"""Photos in shards are those of the folder they were written from; what is wrong is named."""

import gzip
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.errors import InvalidRequest
from serving.modelspec import Preprocessing
from tests.photos import jpeg
from tests.small_disk import small_disk
from tests.trainer.conftest import MakePhotos, draw
from tests.trainer.shards import samples, write_tar
from trainer.config import TrainConfig
from trainer.console import unshown
from trainer.data import PhotoData, load_data
from trainer.errors import InvalidData
from trainer.listing import find_photos
from trainer.make_shards import main as make_shards
from trainer.shard_places import Member, expand_braces
from trainer.shards import shards_name
from trainer.tree import Found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "shards"


def load(data: str | Path) -> PhotoData:
    config = TrainConfig(data=str(data), name="x", size=32)
    spec = Preprocessing(size=32, interpolation="bilinear")
    return load_data(config, find_photos(data), spec, unshown)


def told(found: list[Found]) -> list[tuple[str, str, str | None]]:
    return [(each.file, each.label, each.split) for each in found]


def reasons(data: PhotoData) -> dict[str, str]:
    return {item.file: item.reason for item in data.left_out}


def make(folder: Path, out: Path, *more: str) -> Path:
    assert make_shards(["--data", str(folder), "--out", str(out), *more]) == 0
    return out


def expect(data: str | Path, message: str) -> None:
    with pytest.raises(InvalidData, match=message):
        find_photos(data)


def test_shards_hold_what_the_folder_holds(photos: MakePhotos, tmp_path: Path):
    """The same photos in the same splits under the same digest, and the same files left out."""
    folder = photos(per_class=12)
    (folder / "discs" / "cut.jpg").write_bytes((folder / "discs" / "000.jpg").read_bytes()[:500])
    shutil.copy(folder / "discs" / "001.jpg", folder / "discs" / "copy.jpg")
    shards = make(folder, tmp_path / "shards")
    assert told(find_photos(shards)) == told(find_photos(folder))
    there, here = load(shards), load(folder)
    assert there.describe() == here.describe() and there.split_json() == here.split_json()
    assert there.left_out == here.left_out and len(there.left_out) == 2


def test_splits_are_told_by_the_names_of_the_shards(photos: MakePhotos, tmp_path: Path):
    folder = photos("all/train", per_class=6).parent
    photos("all/test", per_class=3, seed=1)
    shards = make(folder, tmp_path / "shards")
    assert sorted(p.name for p in shards.iterdir()) == [
        *("classnames.txt", "test-000000.tar", "train-000000.tar"),
    ]
    assert load(shards).describe() == load(folder).describe()
    tests = find_photos(shards / "test-*.tar")
    assert len(tests) == 6 and {each.split for each in tests} == {None}
    for split in ("train", "test"):  # told by folders too, with the names of classes above them
        (tmp_path / "tree" / split).mkdir(parents=True)
        (shards / f"{split}-000000.tar").rename(tmp_path / "tree" / split / "0.tar")
    (shards / "classnames.txt").rename(tmp_path / "tree" / "classnames.txt")
    assert load(f"{tmp_path}/tree/{{train,test}}/*.tar").describe() == load(folder).describe()


def test_the_same_photos_give_the_same_bytes_in_shards_of_bounded_size(
    photos: MakePhotos, tmp_path: Path
):
    folder = photos(per_class=4)
    for i in range(6):
        draw("squares", i).resize((900, 900)).save(folder / "squares" / f"large{i}.png")
        (folder / "discs" / f"noise{i}.jpg").write_bytes(os.urandom(400_000))
    one = make(folder, tmp_path / "one", "--shard-mb", "1")
    os.utime(folder / "discs" / "000.jpg", (0, 0))
    other = make(folder, tmp_path / "other", "--shard-mb", "1")
    names = sorted(path.name for path in one.iterdir())
    assert len(names) >= 4 and names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()
        assert (one / name).stat().st_size <= 1_000_000
    assert len(find_photos(one)) == 20


def test_keys_have_no_dots_and_differ_and_what_is_no_photo_is_named(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = photos(per_class=3)
    draw("discs", 7).save(folder / "discs" / "000.png")
    draw("discs", 8).save(folder / "discs" / "a.b.jpg")
    (folder / "discs" / "notes.txt").write_text("not a label")
    (folder / "discs" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    shards = make(folder, tmp_path / "shards")
    said = capsys.readouterr().out
    assert "2 photos are named otherwise" in said and "8 photos in 1 shards" in said
    assert "discs/notes.txt: its name does not end as a photo's does" in said
    assert "discs/gone.jpg: not a regular file, or a dangling link" in said
    files = {each.file for each in find_photos(shards)}
    assert {"discs/000.jpg", "discs/000_2.png", "discs/a_b.jpg"} <= files


def test_shards_are_written_where_a_link_leads(photos: MakePhotos, tmp_path: Path):
    folder, large = photos(), tmp_path / "disk" / "large"
    large.mkdir(parents=True)
    (tmp_path / "link").symlink_to(large)
    make(folder, tmp_path / "link")
    assert told(find_photos(large)) == told(find_photos(folder))
    assert list(tmp_path.glob(".*")) == list(large.parent.glob(".*")) == []


def test_a_disk_is_no_folder_of_shards_and_one_in_it_is(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = photos()
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        assert make_shards(["--data", str(folder), "--out", str(disk)]) == 2
        said = capsys.readouterr()
        assert "disk can't be replaced (" in said.err and "choose a folder in it" in said.err
        assert "Writing" not in said.out
        make(folder, disk / "shards")


def test_a_photo_that_can_not_be_read_is_named_and_costs_no_other(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As `train` has it."""
    named = [each.file for each in find_photos(photos())]
    rows = [f"photos/{file},{file.partition('/')[0]}" for file in named]
    table = tmp_path / "photos.csv"
    table.write_text("\n".join(["path,label", *rows, f"photos/{'x' * 300}.jpg,discs"]))
    shards = make(table, tmp_path / "shards")
    assert "xxx.jpg: can't be read: File name too long\n" in capsys.readouterr().out
    assert len(find_photos(shards)) == len(named)


def test_shards_are_not_written_over_anything(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, out = photos(), tmp_path / "out"
    command = ["--data", str(folder), "--out", str(out)]
    out.mkdir()
    assert make_shards(command) == 0
    table = tmp_path / "photos.csv"
    lines = [
        f'photos/{label}/00{i}.jpg,"{label}\nx"' for label in ("discs", "squares") for i in range(3)
    ]
    table.write_text("\n".join(["path,label", *lines, ""]))
    before = sorted(tmp_path.iterdir())
    for wrong, message in (
        (["--data", str(table), "--out", str(tmp_path / "new")], "is not one line of text"),
        (command, "is not an empty folder"),
        ([*command, "--out", str(folder / "new")], "new lies in "),  # as a class
        (["--data", str(out), "--out", str(out / "new")], "new lies in "),
        ([*command, "--out", ""], "--data and --out are required"),
        ([*command, "--data", ""], "--data and --out are required"),
        ([*command, "--shard-mb", "0"], "--shard-mb must be 1 to 100000, got 0"),
        (["--data", str(tmp_path / "absent"), "--out", str(tmp_path / "new")], "no folder"),
    ):
        capsys.readouterr()
        assert make_shards(wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


# It leaves the closing of its files to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_package_reads_our_shards(photos: MakePhotos, tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    folder = photos(per_class=5)
    shards = make(folder, tmp_path / "shards")
    pattern = str(shards / "photos-{000000..000000}.tar")
    names = (shards / "classnames.txt").read_text().split()
    reader = webdataset.WebDataset(pattern, shardshuffle=False).decode("pil")
    seen = {s["__key__"]: (s["jpg"].size, names[s["cls"]]) for s in reader}
    files = {each.file: each for each in find_photos(folder)}
    assert {f"{key}.jpg" for key in seen} == files.keys()
    for key, (size, label) in seen.items():
        assert label == files[f"{key}.jpg"].label and min(size) >= 64


def test_shards_of_the_webdataset_package_are_read(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "own").mkdir()
    pattern = str(tmp_path / "own" / "part-%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=5, verbose=0) as sink:
        for i in range(12):
            sink.write({"__key__": f"sample{i:04}", "jpg": jpeg(seed=i), "cls": i % 2})
    found = find_photos(tmp_path / "own" / "part-{0000..0002}.tar")
    assert told(found) == [(f"sample{i:04}.jpg", str(i % 2), None) for i in range(12)]
    assert [each.path.read_bytes() for each in found] == [jpeg(seed=i) for i in range(12)]
    (tmp_path / "own" / "classnames.txt").write_text("cat\nsnow leopard\n")
    assert {each.label for each in find_photos(tmp_path / "own")} == {"cat", "snow leopard"}


@pytest.mark.parametrize(
    ("ending", "text"),
    [("cls", "{}\n"), ("txt", " {} "), ("json", '{{"label": "{}", "width": 3}}')],
)
def test_labels_are_names_in_any_of_the_three_ways(tmp_path: Path, ending: str, text: str):
    labels = tuple(map(text.format, ("cat", "snow leopard")))
    write_tar(tmp_path / "a.tar", samples(0, labels, ending))
    assert [each.label for each in find_photos(tmp_path / "a.tar")] == ["cat", "snow leopard"]


@pytest.mark.parametrize(
    "label", ["\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f52c", "l" * 255, " cat "]
)
def test_letters_and_emoji_that_are_joined_and_long_names_go_through_shards(
    photos: MakePhotos, tmp_path: Path, label: str
):
    folder = photos(labels=(label, "squares"), per_class=2)
    assert told(find_photos(make(folder, tmp_path / "shards"))) == told(find_photos(folder))


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Path):
    write_tar(tmp_path / "a.tar", samples(0, ("\ufeffcat", "\ufeffdog")))
    assert [each.label for each in find_photos(tmp_path / "a.tar")] == ["cat", "dog"]
    write_tar(tmp_path / "n" / "b.tar", samples(0, ("0", "1")))
    (tmp_path / "n" / "classnames.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    assert [each.label for each in find_photos(tmp_path / "n")] == ["cat", "dog"]


def test_labels_in_another_encoding_do_not_become_one(tmp_path: Path):
    members: dict[str, bytes] = {}
    for i, label in enumerate(("Löwe", "Läwe", "Hund", "Katze")):
        members |= {f"{i}.jpg": jpeg(seed=i), f"{i}.cls": label.encode("latin-1")}
    found = find_photos(write_tar(tmp_path / "a.tar", members))
    assert [each.label for each in found] == ["", "", "Hund", "Katze"]
    assert found[0].fault and found[0].fault.startswith("no label: 0.cls is not one line of UTF-8")


def test_shards_beside_a_hidden_folder_are_shards(tmp_path: Path):
    write_tar(tmp_path / "n" / "a.tar", samples(0))
    (tmp_path / "n" / ".cache").mkdir()
    assert len(find_photos(tmp_path / "n")) == 2


def test_an_index_made_by_other_rules_is_made_anew(tmp_path: Path, cache: Path):
    shard = write_tar(tmp_path / "a.tar", samples(0))
    first = find_photos(shard)
    (index,) = cache.glob("*.json")
    _, rows = json.loads(index.read_text())
    for other in (rows, [1, [[*row[:4], "refused"] for row in rows]]):
        index.write_text(json.dumps(other))
        assert find_photos(shard) == first


def test_a_caption_beside_the_class_is_no_label(tmp_path: Path):
    members = samples(0) | {"000000.txt": b"a cat on a mat", "000001.json": b'{"label": "x"}'}
    write_tar(tmp_path / "a.tar", members)
    assert [each.label for each in find_photos(tmp_path / "a.tar")] == ["cat", "dog"]


def test_samples_that_lack_something_are_named_and_left_out(tmp_path: Path):
    members = {}
    for i in range(4):
        members |= samples(2 * i)
    whole = members["000000.jpg"]
    members |= {
        **{"cut.jpg": whole[:400], "cut.cls": b"cat"},
        **{"alone.jpg": jpeg(seed=90), "lost.cls": b"dog"},
        **{"empty.jpg": jpeg(seed=91), "empty.cls": b" \n"},
        **{"long.jpg": jpeg(seed=92), "long.txt": b"a caption\nof two lines"},
        **{"other.jpg": jpeg(seed=93), "other.json": b'{"caption": "x"}'},
        **{"spoilt.jpg": jpeg(seed=94), "spoilt.json": b"{"},
        **{"half.jpg": jpeg(seed=95), "half.json": b'{"label": "\\ud83d"}'},
        **{"again.jpg": whole, "again.cls": b"dog"},
        **{"._000000.jpg": b"of a Mac", "README": b"x", "000000.npy": b"x"},
    }
    write_tar(tmp_path / "a.tar", members)
    data = load(tmp_path / "a.tar")
    assert data.labels == ("cat", "dog") and sum(map(len, data.splits.values())) == 8
    found = reasons(data)
    assert "truncated" in found.pop("cut.jpg")
    assert found == {
        "alone.jpg": "no label: the shard has no alone.cls or alone.json or alone.txt",
        "lost.cls": "a label without a photo",
        "empty.jpg": "no label: empty.cls is empty",
        "long.jpg": "no label: long.txt is not one line of UTF-8 of at most 255 characters",
        "other.jpg": "no label: other.json has no entry named label",
        "half.jpg": "no label: half.json is not one line of UTF-8 of at most 255 characters",
        "spoilt.jpg": "no label: spoilt.json has no entry named label",
        "again.jpg": "duplicate: same content as 000000.jpg, under another label (cat)",
    }


def test_a_damaged_shard_is_told_from_a_whole_one(tmp_path: Path):
    whole = write_tar(tmp_path / "whole.tar", samples(0)).read_bytes()
    assert len(find_photos(tmp_path / "whole.tar")) == 2
    with tarfile.open(tmp_path / "whole.tar") as tar:
        last = tar.getmembers()[-1]
    ends = last.offset_data + 512
    header = bytearray(whole)
    header[last.offset : last.offset + 100] = b"\xff" * 100
    for name, data, message in (
        ("cut", whole[: len(samples(0)["000000.jpg"])], "cut.tar is cut off"),
        ("at-member", whole[:ends], f"at-member.tar is cut off or damaged at byte {ends:,}"),
        ("header", bytes(header), f"header.tar is cut off or damaged at byte {last.offset:,}"),
        ("text", b"no tar file " * 200, "text.tar is cut off, damaged or no tar file"),
        ("empty", b"", "empty.tar is cut off, damaged or no tar file"),
        ("joined", whole + whole, f"joined.tar goes on behind its end at byte {ends:,}"),
        ("zip", gzip.compress(whole), "zip.tar is compressed; .* decompress it"),
    ):
        (tmp_path / f"{name}.tar").write_bytes(data)
        expect(tmp_path / f"{name}.tar", message)


def test_every_cut_is_noticed(tmp_path: Path):
    whole = write_tar(tmp_path / "whole.tar", samples(0)).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 512
    for length in range(0, end, 173):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        expect(tmp_path / "cut.tar", "cut off")


def test_splits_whose_samples_are_each_counted_from_zero(tmp_path: Path):
    """As the webdataset package's own examples write them: 000000 is in train and in test."""
    for first, split in enumerate(("train", "test")):
        photos = {f"00000{i}.jpg": jpeg(seed=2 * first + i) for i in range(2)}
        labels = {f"00000{i}.cls": label for i, label in enumerate((b"cat", b"dog"))}
        write_tar(tmp_path / "pets" / f"{split}-000000.tar", photos | labels)
    assert told(find_photos(tmp_path / "pets")) == [
        (f"{split}/00000{i}.jpg", label, split)
        for split in ("train", "test")
        for i, label in enumerate(("cat", "dog"))
    ]
    write_tar(tmp_path / "pets" / "test-000001.tar", samples(1))
    expect(tmp_path / "pets", r"the key 000001 is in .*test-000000.tar and in .*test-000001.tar")


def test_keys_that_occur_twice_are_refused(tmp_path: Path):
    write_tar(tmp_path / "a" / "0.tar", samples(0))
    write_tar(tmp_path / "a" / "1.tar", samples(1))
    expect(tmp_path / "a", r"the key 000001 is in .*0.tar and in .*1.tar; keys must differ")
    twice = [*samples(0).items(), ("000001.jpg", jpeg(seed=5))]
    expect(write_tar(tmp_path / "b.tar", twice), "b.tar has two photos of the key 000001")
    both = samples(0) | {"000001.png": jpeg(seed=5)}
    expect(write_tar(tmp_path / "c.tar", both), "c.tar has two photos of the key 000001")
    labels = [*samples(0).items(), ("000001.cls", b"cat")]
    expect(write_tar(tmp_path / "d.tar", labels), "d.tar has two labels of the key 000001")


def test_what_is_not_there_is_named(tmp_path: Path):
    write_tar(tmp_path / "a-000.tar", samples(0))
    expect(tmp_path / "absent.tar", "no shard matches .*absent.tar")
    expect(tmp_path / "b-*.tar", r"no shard matches .*b-\*.tar")
    expect(tmp_path / "a-{000..003}.tar", "names shards that are not there: .*a-001.tar and 2 more")


def test_the_name_of_a_folder_is_no_pattern(photos: MakePhotos, tmp_path: Path):
    folder = photos(per_class=2)
    shards = make(folder, tmp_path / "pets [v2] {a,b}*")
    (shards / "._photos-000000.tar").write_bytes(b"what another system leaves beside files")
    assert told(find_photos(shards)) == told(find_photos(folder))


def test_a_shard_that_is_there_is_no_pattern(photos: MakePhotos, tmp_path: Path):
    make(photos(per_class=3), tmp_path / "a[1]")
    (shard,) = (tmp_path / "a[1]").glob("*.tar")
    both = f"{tmp_path}/a[1]/{{{shard.stem},{shard.stem}}}.tar"
    for data in (shard, both):
        assert len(find_photos(str(data), None)) == 6


def test_labels_that_can_not_be_right_are_refused(tmp_path: Path):
    expect(write_tar(tmp_path / "one.tar", samples(0, ("cat",))), r"has one label \(cat\)")
    none = write_tar(tmp_path / "none.tar", {"a.jpg": jpeg()})
    expect(none, r"has no photo with a label \(a.jpg: no label: the shard has no a.cls or")
    case = write_tar(tmp_path / "case.tar", samples(0, ("cat", "Cat")))
    expect(case, "'Cat' and 'cat' in .* differ only in case, spaces")
    numbers = write_tar(tmp_path / "n" / "x.tar", samples(0, ("0", "2")))
    (tmp_path / "n" / "classnames.txt").write_text("cat\ndog\n")
    expect(numbers, "000001.jpg in .* has the label 2, and classnames.txt only the 2 from 0 to 1")
    for names in ("cat\ndog\ncat\n", "cat\ndog\n\ncow\n", "cat\r\ndog\r\n \r\ncow\r\n"):
        (tmp_path / "n" / "classnames.txt").write_text(names, newline="")
        expect(
            numbers, "0000(00|01).jpg in .* the label [02], and line [13] of classnames.txt is e"
        )
    (tmp_path / "n" / "classnames.txt").write_text("\ncat\ndog\n")  # which moves no line upwards
    expect(numbers, "000000.jpg in .* has the label 0, and line 1 of classnames.txt is empty")
    (tmp_path / "n" / "classnames.txt").write_bytes("Löwe\n\nHund".encode("latin-1"))
    expect(numbers, r"the class 'L\\udcf6we' in .* is not UTF-8: rename it")
    write_tar(tmp_path / "s" / "train-0.tar", samples(0))
    write_tar(tmp_path / "s" / "more-0.tar", samples(10))
    expect(tmp_path / "s", "more-0.tar is of no split; expected train, val or test")
    (tmp_path / "s" / "more-0.tar").unlink()
    write_tar(tmp_path / "s" / "test-0.tar", samples(10, ("cat", "cow")))
    expect(tmp_path / "s", "classes of test are not those of train: missing 'dog'; only in test")


def test_a_shard_is_read_once_until_it_changes(tmp_path: Path, cache: Path):
    shard = write_tar(tmp_path / "a.tar", samples(0))
    first = find_photos(shard)
    (index,) = cache.glob("*.json")
    assert find_photos(shard) == first
    rules, rows = json.loads(index.read_text())
    rows[0][0] = "renamed.jpg"
    index.write_text(json.dumps([rules, rows]))
    assert "renamed.jpg" in {
        each.file for each in find_photos(shard)
    }  # it is the index that is read
    for damage in ("", "[", "{}", "[[1]]", "7"):
        index.write_text(damage)
        assert find_photos(shard) == first
    write_tar(shard, samples(50, ("cow", "dog")))
    assert [each.label for each in find_photos(shard)] == ["cow", "dog"]


def test_where_nothing_can_be_kept_it_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shard = write_tar(tmp_path / "a.tar", samples(0))
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "file"))
    assert len(find_photos(shard)) == 2


def test_a_shard_that_changes_during_the_training_is_noticed(tmp_path: Path):
    members = {}
    for i in range(4):
        members |= samples(2 * i)
    shard = write_tar(tmp_path / "a.tar", members)
    data = load(shard)
    photo = data.splits["train"][0]
    assert isinstance(photo.path, Member)
    data.squares._kept.clear()
    write_tar(shard, samples(90))
    with pytest.raises(InvalidData, match="was changed during the training"):
        data.squares.get([photo])
    shard.unlink()
    with pytest.raises(InvalidData, match="can't be read any more: No such file"):
        data.squares.get([photo])


def test_names_of_members_that_are_long_or_begin_with_a_dot(tmp_path: Path):
    long = "é" * 90 + "/" + "x" * 150
    members = {f"./{long}.JPG": jpeg(seed=1), f"./{long}.cls": b"cat", **samples(5, ("dog",))}
    write_tar(tmp_path / "a.tar", members)
    found = find_photos(tmp_path / "a.tar")
    assert [each.file for each in found] == ["000005.jpg", f"{long}.JPG"]
    assert found[1].path.read_bytes() == jpeg(seed=1)


def test_a_name_that_is_not_utf_8_is_written_down_with_the_version(tmp_path: Path):
    members = samples(0, 6 * ("cat", "dog")) | {
        "b\udce4r.jpg": jpeg(seed=50),
        "b\udce4r.cls": b"cat",
    }
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = load(write_tar(tmp_path / f"{form}.tar", members, form))
        files = {photo.file for split in data.splits.values() for photo in split}
        assert r"b\xe4r.jpg" in files and len(files) == 13


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}", ["a-08", "a-09", "a-10", "a-11"]),
        ("a-{8..11}", ["a-8", "a-9", "a-10", "a-11"]),
        ("a-{3..1}", ["a-1", "a-2", "a-3"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("x{,{1..2}}", ["x", "x1", "x2"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern: str, names: list[str]):
    assert sorted(expand_braces(pattern)) == sorted(names)


def test_other_braces_are_refused():
    for pattern, message in (
        ("a{}b", "neither {FIRST..LAST} nor {ONE,OTHER}"),
        ("a{0...9}", "neither"),
        ("{0..1000000}", "more than 1,000,000 shards"),
        ("{0..9999}{0..9999}", "more than 1,000,000 shards"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            expand_braces(pattern)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("s3://bucket/pets/photos-{000..031}.tar", "photos"),
        ("s3://bucket/pets/train-*.tar", "pets"),
        ("s3://bucket/pets", "pets"),
        ("/data/cats/{train,test}/*.tar", "cats"),
        ("/data/cats/cats-000004.tar", "cats"),
    ],
)
def test_a_model_is_named_after_its_shards(data: str, name: str):
    assert shards_name(data) == name
