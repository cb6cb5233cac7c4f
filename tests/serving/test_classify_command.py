"""The command `classify`, run as a user would, against a server in a process of its own."""

import csv
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.belief import Belief
from serving.client import AsyncClient, Client
from serving.photo_paths import photo_paths
from serving.repository import Repository
from tests.commands import run_python
from tests.conftest import ROOT, ServerProcess, running_server
from tests.photos import black, drawing, jpeg, noise
from tests.tiny import attach_trust, build_version
from trainer.tree import find_files

README = (ROOT / "README.md").read_text()


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """30 photos in two folders, beside files that are none."""
    folder = tmp_path / "album"
    for seed in range(30):
        path = folder / ("a" if seed < 15 else "b") / f"{seed:02}.{'jpg' if seed % 2 else 'PNG'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(seed=seed).save(path)
    (folder / "notes.txt").write_text("not a photo")
    (folder / "b" / ".DS_Store").write_text("nor this")
    return folder


def classify(
    server: ServerProcess, *arguments: object, **options: Any
) -> "subprocess.CompletedProcess[str]":
    return run_python("-m", "serving.classify", "--address", server.address, *arguments, **options)


def test_a_table_for_a_few(server: ServerProcess, tmp_path: Path) -> None:
    photo = tmp_path / "cat.jpg"
    photo.write_bytes(jpeg())
    done = classify(server, photo, "--top-k", 2)
    assert (done.returncode, done.stderr) == (0, "")
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["PHOTO", "LABEL", "PROBABILITY", "MS"]
    assert first.split()[0] == str(photo) and first.split()[1] in ("cat", "dog")
    assert float(first.split()[2]) + float(second.split()[1]) == pytest.approx(1, abs=2e-4)


def test_what_the_readme_says_of_two_classes_works(server: ServerProcess, album: Path) -> None:
    said = re.findall(r"^\.venv/bin/classify photo\.jpg holiday/ (.+)$", README, re.MULTILINE)
    for flags in said:
        done = classify(server, album / "a/01.jpg", album, *flags.split())
        assert (done.returncode, done.stderr) == (0, "")
    asked = re.search(
        r'client\.classify\(\["cat.jpg", "dog.jpg"\], model="pets", top_k=(\d)\)', README
    )
    assert said and asked
    with Client(server.address) as client:
        photos = [album / "a/01.jpg", album / "a/03.jpg"]
        response = client.classify(photos, model="pets", top_k=int(asked[1]))
    assert all(len(result.labels) == int(asked[1]) for result in response.results)


def test_a_folder_is_answered_line_by_line_in_order(server: ServerProcess, album: Path) -> None:
    done = classify(server, album)
    assert (done.returncode, done.stderr) == (0, "")
    paths = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert paths == [str(p) for p in sorted((album).rglob("*")) if p.suffix in (".jpg", ".PNG")]


def test_a_folder_has_the_photos_that_train_finds_there(
    server: ServerProcess, album: Path, tmp_path: Path
) -> None:
    """Behind links too, but not in circles; no hidden ones, such as macOS makes of each photo."""
    (album / "a/._01.jpg").write_bytes(b"\0\5\x16\7")
    (album / ".thumbnails").mkdir()
    drawing(seed=40).save(album / ".thumbnails/01.jpg")
    (tmp_path / "elsewhere").mkdir()
    drawing(seed=41).save(tmp_path / "elsewhere/three_d.mpo", save_all=True, append_images=[])
    (album / "a/elsewhere").symlink_to(tmp_path / "elsewhere")
    trained_on = {str(found.path) for found in find_files(album)}
    (album / "a/circle").symlink_to(album)
    (album / "a/above").symlink_to(tmp_path)
    done = classify(server, album)
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split(":")[0] for line in done.stdout.splitlines()} == trained_on
    assert len(trained_on) == 31


def test_names_move_no_cursor(server: ServerProcess, tmp_path: Path) -> None:
    """In text for people: in a table, in lines, in errors."""
    name, shown = "a\x1b[2J\nb.jpg", r"a\x1b[2J\nb.jpg"
    (tmp_path / name).write_bytes(jpeg())
    for copies in (1, 30):
        done = classify(server, *[tmp_path / name] * copies)
        lines = [line for line in done.stdout.splitlines() if f"{tmp_path}/{shown}" in line]
        assert len(lines) == copies and "\x1b" not in done.stdout
    done = classify(server, tmp_path / f"not{name}")
    assert done.stderr == f"error: no such file or folder: {tmp_path}/not{shown}\n"


def test_json_lines(server: ServerProcess, album: Path) -> None:
    done = classify(server, album, "--json", "--top-k", 2, "--model", "pets", "--version", 1)
    assert done.returncode == 0
    values = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(values) == 30
    for value in values:
        assert (value["model"], value["version"]) == ("pets", 1)
        assert sum(label["probability"] for label in value["labels"]) == pytest.approx(1, abs=1e-5)
        assert value["latency_ms"] > 0
        assert value["familiarity"] is value["unfamiliar"] is None  # the version can't tell


def test_names_that_have_what_ends_a_row_stay_in_one(server: ServerProcess, tmp_path: Path) -> None:
    names = ["a\nb.jpg", "c\rd.jpg", 'e",\r\nf.jpg']
    for name in names:
        (tmp_path / name).write_bytes(jpeg())
    done = classify(server, tmp_path, "--csv", text=False)
    rows = csv.DictReader(io.StringIO(done.stdout.decode(), newline=""))
    assert [Path(row["photo"]).name for row in rows] == names


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_stdout_that_has_not_every_character(
    server: ServerProcess, tmp_path: Path, form: list[str]
) -> None:
    names = ["\xe4\u6f22\U0001f600.jpg", "\xe4\udcff.jpg"]  # the second is no UTF-8
    for name in names:
        (tmp_path / name).write_bytes(jpeg())
    ascii_alone = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = classify(
        server, *(tmp_path / name for name in names), *form, env=ascii_alone, text=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"/\\u00e4\\u6f22\\ud83d\\ude00.jpg" in done.stdout
    assert b"/\\u00e4\xff.jpg" in done.stdout
    if form == ["--json"]:
        read = [
            json.loads(line.decode(errors="surrogateescape")) for line in done.stdout.splitlines()
        ]
        assert [Path(answer["photo"]).name for answer in read] == names


def test_csv_with_an_unreadable_photo(server: ServerProcess, tmp_path: Path) -> None:
    good, bad = tmp_path / 'a,"b".jpg', tmp_path / "bad.jpg"
    good.write_bytes(jpeg())
    bad.write_bytes(b"junk")
    done = classify(server, good, bad, "--csv")
    assert done.returncode == 1
    assert done.stderr == "error: 1 of 2 photos could not be classified\n"
    first, second = csv.DictReader(io.StringIO(done.stdout))
    assert first["photo"] == str(good) and first["label"] in ("cat", "dog")
    assert first["rank"] == "1" and first["error"] == first["familiarity"] == ""
    assert second["photo"] == str(bad) and "not an image" in second["error"]


def test_a_name_that_is_not_utf_8_is_printed_as_it_is(
    server: ServerProcess, tmp_path: Path
) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.jpg"
    Path(os.fsdecode(path)).write_bytes(jpeg())
    done = subprocess.run(
        [sys.executable, "-m", "serving.classify", "--address", server.address, "--json", path],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},  # as in most locales
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0 and path in done.stdout, done.stderr


def test_each_unreadable_photo_is_reported_and_the_rest_answered(
    server: ServerProcess, album: Path
) -> None:
    (album / "a" / "00.PNG").write_bytes(b"")
    os.truncate(album / "b" / "28.PNG", 1 << 40)  # more than the memory
    (album / "b" / "29.jpg").write_bytes(jpeg()[:-300])
    done = classify(server, album)
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 3 and len(done.stdout.splitlines()) == 30
    assert "empty" in errors[0] and "File too large" in errors[1] and "truncated" in errors[2]
    assert done.stderr == "error: 3 of 30 photos could not be classified\n"


def test_a_folder_that_may_not_be_read_is_told_and_not_passed_over(
    server: ServerProcess, tmp_path: Path
) -> None:
    without: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, to give privileges up")
        # The same user: another one may not read this checkout.
        without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    album = tmp_path / "album"
    for folder in ("closed/a", "open", "disk/lost+found", "found/lost+found"):
        (album / folder).mkdir(parents=True)
        (album / folder / "1.jpg").write_bytes(jpeg())
    for folder in ("closed", "disk/lost+found"):
        (album / folder).chmod(0)

    def ended(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*without, sys.executable, "-m", "serving.classify", "--address", server.address]
            + [str(argument) for argument in arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    try:
        for mode, given, entry in (
            (0, album, "closed"),
            (0o444, album, "closed/a"),  # its names alone
            (0, album / "closed/a", "closed/a"),
        ):
            (album / "closed").chmod(mode)
            for flags in ((), ("--out", tmp_path / "out")):
                done = ended(given, *flags)
                said = f"error: {album}/{entry} can't be read: Permission denied\n"
                assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
        (album / "closed").chmod(0o755)
        done = ended(album, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 3  # not those of the closed lost+found
    finally:
        for folder in ("closed", "disk/lost+found"):
            (album / folder).chmod(0o755)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["/nowhere.jpg"], "error: no such file or folder: /nowhere.jpg"),
        ([], "error: the following arguments are required"),
        (["{photo}", "--model", "cars"], "error: no model 'cars' is served; models here: pets"),
        (["{photo}", "--version", "9"], "error: model 'pets' has no version or alias '9'"),
        (["{photo}", "--json", "--csv"], "error: argument --csv: not allowed with"),
        (["{photo}", "--top-k", "x"], "error: argument --top-k: invalid int value"),
        (["{photo}", "--top-k", "3"], "error: --top-k must be 0 to 2, the number of labels; got 3"),
        (
            ["{photo}", "--top-k", "-1"],
            "error: --top-k must be 0 to 2, the number of labels; got -",
        ),
        (["{photo}", "--in-flight", "0"], "error: --in-flight must be 1 or more"),
        (["{photo}", "--timeout", "-1"], "error: --timeout must be more than 0"),
        (["{photo}", "--timeout", "inf"], "error: --timeout must be more than 0 seconds and fin"),
        (["{empty}", "--out", "{empty}/a", "--csv"], "error: --out writes Parquet; --json and"),
        (["{empty}", "--out", "{empty}/a", "--json"], "error: --out writes Parquet; --json and"),
        (["s3://bucket/photos"], "error: s3://bucket/photos: photos in a bucket need --out"),
        (["https://example.com/cat.jpg"], "error: no such file or folder: https:/example.com/cat"),
        (["{photo}", "--shard", "1/8"], "error: --shard needs --out"),
        (["{empty}"], "error: no photos in "),
        ([""], "error: a name is empty; "),
        (["{empty}", "--out", ""], "error: a name is empty; "),
        *(
            (["{photo}", f"--{what}", "\udcff"], rf"error: the {what} '\udcff' is not UTF-8")
            for what in ("model", "version", "address")
        ),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(
    server: ServerProcess, tmp_path: Path, arguments: list[str], words: str
) -> None:
    photo, empty = tmp_path / "cat.jpg", tmp_path / "empty"
    photo.write_bytes(jpeg())
    empty.mkdir()
    done = classify(server, *[a.format(photo=photo, empty=empty) for a in arguments])
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(words)


def test_no_server_is_status_1_and_one_line(tmp_path: Path) -> None:
    photo = tmp_path / "cat.jpg"
    photo.write_bytes(jpeg())
    done = run_python("-m", "serving.classify", photo, "--address", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the server at 127.0.0.1:1 does not answer")
    assert line.endswith("Connection refused; if the server speaks TLS: --tls or --tls-ca FILE")


def test_two_models_need_a_choice(tmp_path: Path, start) -> None:
    build_version(tmp_path / "models", "pets")
    build_version(tmp_path / "models", "birds")
    photo = tmp_path / "cat.jpg"
    photo.write_bytes(jpeg())
    done = classify(start(tmp_path / "models"), photo)
    assert done.returncode == 2
    assert done.stderr == "error: the server has 2 models; choose one by --model: birds, pets\n"


def test_a_terminal_sees_a_progress_bar_and_a_file_the_answers(
    server: ServerProcess, album: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    out = tmp_path / "answers.jsonl"
    with out.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "serving.classify", "--address", server.address),
                *(str(album), "--json"),
            ],
            cwd=ROOT,
            stdout=file,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
        )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert b"classifying" in seen and b"/30" in seen
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 30


def test_answers_that_are_not_sure_enough_are_told(
    tmp_path: Path, album: Path, start: Callable[..., ServerProcess]
) -> None:
    models = tmp_path / "models"
    build_version(models, "pets")
    attach_trust(models, "pets", 1, (0.9, 0.75))
    server = start(models)
    with Client(server.address) as client:
        photos = photo_paths([album])[:10]
        labels = [client.classify([photo], model="pets").results[0].label for photo in photos]
    sure = [label.probability >= 0.75 for label in labels]
    assert {*sure} == {True, False}, "photos that are not all alike"

    done = classify(server, *photos, "--accuracy", 0.9, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["believed"] for line in done.stdout.splitlines()] == sure
    done = classify(server, *photos, "--accuracy", 0.85)
    doubted = [" not sure: " in row for row in done.stdout.splitlines()[1:]]
    assert doubted == [not each for each in sure]
    done = classify(server, album, "--accuracy", 0.9)
    first = [line.partition(": ")[2] for line in done.stdout.splitlines()[:10]]
    assert first == [
        f"{'' if each else 'not sure: '}{label.name} {label.probability:.4f}"
        for each, label in zip(sure, labels, strict=True)
    ]
    done = classify(server, *photos, "--accuracy", 0.9, "--csv", "--top-k", 2)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["believed"] for row in rows[::2]] == [str(each).lower() for each in sure]


def test_unfamiliar_photos_are_told_and_never_believed(
    tmp_path: Path, album: Path, start: Callable[..., ServerProcess]
) -> None:
    models, strange = tmp_path / "models", tmp_path / "black.png"
    known = [tmp_path / f"{seed}.png" for seed in range(2)]
    build_version(models, "pets", familiar=True)
    attach_trust(models, "pets", 1, (0.9, 0.0))
    strange.write_bytes(black())
    for seed, path in enumerate(known):
        noise(32, seed).save(path)
    server = start(models)
    photos = (*known, strange)
    for asked in ((), ("--accuracy", 0.9)):
        rows = classify(server, *photos, *asked).stdout.splitlines()[1:]
        assert [" unfamiliar: " in row for row in rows] == [False, False, True]
        assert "not sure" not in rows[2]
        last = classify(server, album, strange, *asked).stdout.splitlines()[-1]
        assert last.startswith(f"{strange}: unfamiliar: ")
    done = classify(server, *photos, "--json", "--accuracy", 0.9)
    values = [json.loads(line) for line in done.stdout.splitlines()]
    assert [value["unfamiliar"] for value in values] == [False, False, True]
    assert [value["believed"] for value in values] == [True, True, False]
    assert values[2]["familiarity"] == 0.01 and values[0]["familiarity"] > 0.01
    done = classify(server, *photos, "--csv", "--accuracy", 0.9)
    rows = [*csv.DictReader(io.StringIO(done.stdout))]
    # Behind the columns that were there before them.
    assert [*rows[0]][6:] == ["error", "believed", "familiarity", "unfamiliar"]
    assert [row["unfamiliar"] for row in rows] == ["false", "false", "true"]
    assert (rows[2]["familiarity"], rows[2]["believed"]) == ("0.010000", "false")


def test_what_no_analysis_shows_is_an_error(
    tmp_path: Path, album: Path, start: Callable[..., ServerProcess]
) -> None:
    models = tmp_path / "models"
    build_version(models, "pets")
    server = start(models)
    done = classify(server, album, "--accuracy", 0.9)
    assert (done.returncode, done.stdout) == (2, "")
    assert "analyze pets/1 --data DIR" in done.stderr
    attach_trust(models, "pets", 1)
    server = start(models)
    done = classify(server, album, "--accuracy", 0.9)
    assert done.returncode == 2 and "give `analyze` more test photos" in done.stderr
    attach_trust(models, "pets", 1, (0.8, 0.6))
    server = start(models)
    done = classify(server, album, "--accuracy", 0.9)
    assert done.returncode == 2 and "they do for 0.8" in done.stderr
    for wrong in ("1", "0", "nan"):
        done = classify(server, album, "--accuracy", wrong)
        assert done.returncode == 2 and "between 0 and 1" in done.stderr
    done = classify(server, album, "--accuracy", 0.9, "--out", tmp_path / "out")
    assert done.returncode == 2 and "--accuracy is for answers on stdout" in done.stderr


def test_answers_of_another_version_are_believed_by_its_own_analysis(
    tmp_path: Path, album: Path, start: Callable[..., ServerProcess]
) -> None:
    """A canary answers half of the calls."""
    models = tmp_path / "models"
    for seed in range(2):
        build_version(models, "pets", seed=seed)
    Repository(models).promote("pets", 1)
    attach_trust(models, "pets", 1, (0.9, 0.0))
    server = start(models, "--canary", "pets=2:0.5")
    done = classify(server, album, "--accuracy", 0.9, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert {answer["version"] for answer in answers} == {1, 2}
    assert all(answer["believed"] is (answer["version"] == 1) for answer in answers)


async def test_a_version_that_one_server_alone_has_is_believed_by_its_analysis(
    tmp_path: Path,
) -> None:
    """As while a new one is rolled out; calls go to the two servers by turns."""
    models = tmp_path / "models"
    for version in (1, 2):
        build_version(models, "pets")
        attach_trust(models, "pets", version, (0.9, 0.0))
    async with (
        running_server(models, versions="1") as one,
        running_server(models, versions="2") as other,
        AsyncClient(f"{one.address},{other.address}") as both,
    ):
        described = {}
        while len(described) < 2:  # until both are connected
            model = await both.get_model("pets")
            described[model.version] = model
        for version, running in ((1, one), (2, other)):
            async with AsyncClient(running.address) as client:
                (answer,) = [each async for each in client.stream([jpeg()], model="pets")]
            for _ in range(2):
                assert await Belief(both, described[3 - version], 0.9).of(answer)
