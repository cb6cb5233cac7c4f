"""Photos named in a table."""

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.commands import run_python
from tests.conftest import ROOT
from trainer.errors import InvalidData
from trainer.listing import find_photos
from trainer.tree import labels_of


def table(folder: Path, text: str) -> Path:
    path = folder / "photos.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_labels_and_splits_are_read(tmp_path: Path):
    path = table(tmp_path, "split,label,path\ntest,dog,b/2.jpg\ntrain,dog,1.jpg\n"
                 "test,cat,3.jpg\ntrain,cat,b/0.jpg\n")  # fmt: skip
    found = find_photos(path)
    assert [(f.file, f.label, f.split) for f in found] == [
        ("1.jpg", "dog", "train"),
        ("b/0.jpg", "cat", "train"),
        ("3.jpg", "cat", "test"),
        ("b/2.jpg", "dog", "test"),
    ]
    assert found[1].path == tmp_path / "b" / "0.jpg" and labels_of(found) == ("cat", "dog")


def test_splits_may_be_called_as_folders_may(tmp_path: Path):
    rows = "a,x,TRAIN\nb,y,Training\nc,x,valid\nd,y,VALIDATION\ne,x,Test\nf,y,testing\n"
    found = find_photos(table(tmp_path, f"path,label,split\n{rows}"))
    assert [each.split for each in found] == ["train", "train", "val", "val", "test", "test"]


def test_without_splits_there_are_none(tmp_path: Path):
    found = find_photos(table(tmp_path, "path,label\na.jpg,x\nb.jpg,y\n"))
    assert {each.split for each in found} == {None}


def test_parquet_is_read_as_csv_is(tmp_path: Path):
    columns = {"path": ["a.jpg", "b.jpg"], "label": ["x", "y"], "split": [None, None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    found = find_photos(tmp_path / "t.parquet")
    assert [(f.file, f.label, f.split) for f in found] == [
        ("a.jpg", "x", None),
        ("b.jpg", "y", None),
    ]


READING = """
import os, sys
from pathlib import Path
import pyarrow.parquet
from serving.parquet import failed_rows, parquet_of
from trainer.listing import find_photos

def threads():
    return len(os.listdir("/proc/self/task"))

photos = pyarrow.table({"path": ["a.jpg", "b.jpg"], "label": ["x", "y"]})
pyarrow.parquet.write_table(photos, "t.parquet")
part = parquet_of([{"photo": "a.jpg", "error": "broken"}])
before = threads()
assert len(find_photos(Path("t.parquet"))) == 2
assert threads() == before
assert failed_rows(part, "part") == 1
assert threads() == before
"""


def test_reading_parquet_starts_no_thread(tmp_path: Path):
    """Which would abort a process that ends as it starts."""
    done = run_python("-c", READING, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")


def test_what_spreadsheets_add_to_a_csv_is_passed_over(tmp_path: Path):
    text = "path , label,split,\r\n a.jpg , x,,\r\n,,,\r\n\r\nb.jpg,y,,\r\n,,,\r\n"
    path = tmp_path / "photos.csv"
    path.write_bytes(text.encode("utf-8-sig"))
    assert [(f.file, f.label, f.split) for f in find_photos(path)] == [
        ("a.jpg", "x", None),
        ("b.jpg", "y", None),
    ]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([["x"], ["y", "z"]], r"the label in row 1 of .* is \['x'\]; expected text or a number"),
        ([{"name": "x"}, {"name": "y"}], "the label in row 1 of .* is {'name': 'x'}"),
        ([b"x", b"y"], "the label in row 1 of .* is b'x'"),
        ([1.0, float("nan")], "row 2 of .* has no label"),
        (pyarrow.array([0, 1], pyarrow.timestamp("ns")), "can't be read as Parquet: Nanosecond"),
        (pyarrow.array([0, 2**30], pyarrow.date32()), "can't be read as Parquet: .*days="),
    ],
)
def test_labels_of_parquet_that_are_none_are_no_classes(tmp_path: Path, label: list, message: str):
    content = pyarrow.table({"path": ["a.jpg", "b.jpg"], "label": label})
    pyarrow.parquet.write_table(content, tmp_path / "t.parquet")
    with pytest.raises(InvalidData, match=message):
        find_photos(tmp_path / "t.parquet")


def test_two_columns_of_one_name_are_told_in_a_line(tmp_path: Path):
    content = pyarrow.table([["a.jpg"], ["x"], ["y"]], names=["path", "label", "label"])
    pyarrow.parquet.write_table(content, tmp_path / "t.parquet")
    with pytest.raises(InvalidData, match="^[^\n]* has 2 columns named label$"):
        find_photos(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 1], ["0", "1"]), ([False, True], ["False", "True"]), ([0.0, 1.5], ["0.0", "1.5"])],
)
def test_labels_may_be_numbers_and_0_is_one(tmp_path: Path, labels: list, expected: list[str]):
    columns = {"path": ["a.jpg", "b.jpg"], "label": labels}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert [f.label for f in find_photos(tmp_path / "t.parquet")] == expected
    columns["label"] = [None, labels[1]]
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InvalidData, match="row 1 of .* has no label"):
        find_photos(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,x\n", "has no column path; it has file, label"),
        ("", "has no column path or label; it has none"),
        ("path;label\na;x\n", "no commas between its columns: 'path;label'; save it with commas"),
        ("path,label,label\na,x,y\n", "has 2 columns named label"),
        ("path,label\na,x\nb,y, or z\n", "row 2 of .* more than the 2 columns; put .* quotes"),
        ('path,label\na,x\nb,y\nc,"y\nd,y\ne,y\n', "row 3 of .* a quotation mark not closed"),
        (f"path,label\na,x\nb,{'y' * 200_000}\n", "row 2 of .* text of more than 128 KiB"),
        ("path,label\n", "has no rows; expected two labels"),
        ("path,label\na,x\nb,x\n", r"one label \(x\)"),
        ("path,label\na,x\nb,\n", "row 2 of .* has no label"),
        ("path,label\na,x\n,y\n", "row 2 of .* has no path"),
        ("path,label\na,x\na,y\n", "names a more than once"),
        ("path,label,split\na,x,train\nb,y,dev\n", "row 2 of .* has the split 'dev'; expected"),
        ("path,label,split\na,x,train\nb,y,\n", "some photos a split and others none"),
        ("path,label,split\na,x,test\nb,y,test\n", "no row of the split train"),
        ("path,label,split\na,x,train\nb,y,train\nc,x,test\n", "classes of test are not those"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_row(tmp_path: Path, text: str, message: str):
    with pytest.raises(InvalidData, match=message):
        find_photos(table(tmp_path, text))


def test_a_file_that_is_no_table_says_so(tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidData, match="can't be read as Parquet"):
        find_photos(tmp_path / "t.parquet")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InvalidData, match="pipe.csv is neither a file nor a folder"):
        find_photos(tmp_path / "pipe.csv")
    latin = pyarrow.array([b"a.jpg", "b\xe4r.jpg".encode("latin-1")]).view(pyarrow.utf8())
    content = pyarrow.table({"path": latin, "label": ["x", "y"]})
    pyarrow.parquet.write_table(content, tmp_path / "t.parquet")
    with pytest.raises(InvalidData, match="can't be read as Parquet: 'utf-8' codec can't decode"):
        find_photos(tmp_path / "t.parquet")
    with pytest.raises(InvalidData, match="can't be read as CSV"):
        find_photos(tmp_path / "absent.csv")
    (tmp_path / "excel.csv").write_text("path,label\na,b\xe4r\n", encoding="latin-1")
    with pytest.raises(InvalidData, match=r"excel.csv is not in UTF-8 \(.*\); save it so"):
        find_photos(tmp_path / "excel.csv")
