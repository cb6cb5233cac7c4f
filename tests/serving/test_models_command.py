import json
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest

from serving.models import main
from serving.modelspec import Manifest
from serving.repository import Repository
from tests.commands import run_python, unread
from tests.tiny import attach_trust, build_version, tiny_model


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """pets/1, pets/2 and birds/1."""
    for seed in range(2):
        build_version(tmp_path, "pets", seed=seed)
    build_version(tmp_path, "birds", ["a", "b", "c"])
    return tmp_path


@pytest.fixture
def models(root: Path, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> tuple[int, str, str]:
        """Status, stdout, stderr."""
        status = 0
        try:
            main([*arguments, "--models", str(root)])
        except SystemExit as ended:
            status = int(ended.code or 0)
        return (status, *capsys.readouterr())

    return run


@pytest.mark.parametrize("asked", ["list", "verify"])
def test_a_reader_that_leaves_ends_it_without_a_word(root: Path, asked: str) -> None:
    """`verify` with something to complain of, too."""
    (root / "birds/1/model.onnx").write_bytes(b"damaged")
    assert unread("-m", "serving.models", asked, "--models", root) == (1, "")


def test_list(models) -> None:
    models("promote", "pets/1")
    status, out, err = models("list")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [["birds", "1"], ["pets", "1"], ["pets", "2"]]
    assert rows[2][2:5] == ["stable", "0.9000", "10"]
    values = json.loads(models("list", "--json")[1])
    assert [v["aliases"] for v in values] == [[], ["stable"], []]


def test_list_shows_a_broken_version(models, root: Path) -> None:
    (root / "pets/2/manifest.json").write_text("{}")
    status, out, _ = models("list")
    assert status == 0 and "broken" in out.splitlines()[3]
    assert "does not match" in json.loads(models("list", "--json")[1])[2]["problem"]


def test_an_alias_that_is_malformed_is_named_and_breaks_no_version(models, root: Path) -> None:
    for alias in ("canary", "stable"):
        models("promote", "pets/1", "--alias", alias)
    (root / "pets/aliases/canary").write_text("one\n")
    status, out, err = models("list")
    assert (status, err) == (0, "")
    first, second, alias = (line.split() for line in out.splitlines()[2:])
    assert first[:4] == ["pets", "1", "stable", "0.9000"] and second[:3] == ["pets", "2", "0.9000"]
    assert alias == "pets canary broken alias 'canary' of 'pets' is malformed".split()
    *sound, malformed = json.loads(models("list", "--json")[1])
    assert ["problem" in row for row in sound] == [False] * 3
    assert (malformed["name"], malformed["version"], malformed["alias"]) == ("pets", None, "canary")
    assert ["aliases", "stable"] in [
        line.split() for line in models("show", "pets")[1].splitlines()
    ]
    assert models("page")[0] == 0
    page = (root / "index.html").read_text()
    assert "alias &#x27;canary&#x27; of &#x27;pets&#x27; is malformed" in page
    assert "1 <b>stable</b>" in page
    for change in (
        ("promote", "pets/2", "--alias", "canary"),
        ("rollback", "pets", "--alias", "canary"),
    ):
        status, _, err = models(*change)
        assert status == 1
        assert "malformed; remove pets/aliases/canary, then promote a version" in err


def test_a_model_that_can_not_be_read_hides_no_other(models, root: Path) -> None:
    (root / "birds/5").symlink_to("x" * 300)  # an error for whoever looks, root too
    status, out, _ = models("list")
    (line,) = (line for line in out.splitlines() if line.startswith("birds "))
    assert (status, out.count("pets ")) == (0, 2) and "broken" in line and "too long" in line
    birds = json.loads(models("list", "--json")[1])[-1]
    assert (birds["name"], birds["version"]) == ("birds", None) and "too long" in birds["problem"]
    assert models("page")[0] == 0
    page = (root / "index.html").read_text()
    assert "File name too long" in page and page.count("90.0 %") == 2
    status, out, _ = models("verify")
    assert status == 1 and "birds: [Errno 36]" in out and out.count(": whole and unaltered") == 2


def test_an_alias_whose_version_is_gone_is_named(models, root: Path) -> None:
    models("promote", "pets/1", "--alias", "canary")
    shutil.rmtree(root / "pets/1")
    said = "alias 'canary' of 'pets' names version 1, which is not there"
    status, out, _ = models("list")
    assert status == 0 and out.splitlines()[-1].split(maxsplit=3)[1:] == ["canary", "broken", said]
    gone = json.loads(models("list", "--json")[1])[-1]
    assert gone == {"name": "pets", "version": None, "alias": "canary", "problem": said}
    models("page")
    assert "names version 1, which is not there" in (root / "index.html").read_text()
    assert models("show", "pets/canary") == (2, "", f"error: {said}\n")


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_version_that_is_removed_meanwhile_is_left_out(
    command: str, models, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Losing(Repository):
        def check_version(self, name: str, version: int) -> None:
            if (name, version) == ("pets", 1):
                shutil.rmtree(root / "pets/1", ignore_errors=True)  # as a job that cleans up does
            super().check_version(name, version)

    monkeypatch.setattr("serving.models.open_repository", lambda *_, **__: Losing(root))
    build_version(root, "pets", seed=2)
    status, out, err = models(command)
    assert (status, err) == (0, "") and "3" in out and len(out.splitlines()) >= 3
    monkeypatch.undo()
    assert models(command)[1] == out


def test_list_of_an_empty_repository(tmp_path: Path, capsys) -> None:
    main(["list", "--models", str(tmp_path)])
    assert capsys.readouterr().out.startswith("MODEL")


def test_verify_says_that_there_was_nothing_to_look_at(tmp_path: Path, capsys) -> None:
    main(["verify", "--models", str(tmp_path)])
    assert capsys.readouterr().out == f"no version in {tmp_path}\n"
    main(["verify", "--json", "--models", str(tmp_path)])
    assert json.loads(capsys.readouterr().out) == {}


def test_show(models) -> None:
    status, out, _ = models("show", "birds")
    assert status == 0 and "a, b, c" in out and "model.onnx" in out
    manifest = json.loads(models("show", "birds/1", "--json")[1])
    assert manifest["labels"] == ["a", "b", "c"]


def test_show_says_which_answers_may_be_believed(models, root: Path) -> None:
    attach_trust(root, "pets", 1, (0.9, 0.5), (0.95, 0.8))
    told = "from a probability of 0.5 on 90 % are right, of 0.8 on 95 % are right"
    assert ["trust", "fp32", *told.split()] in [
        line.split() for line in models("show", "pets/1")[1].splitlines()
    ]
    (root / "pets/1/analysis/trust.json").write_text("{}")
    status, out, _ = models("show", "pets/1")
    assert status == 0 and "accuracy fp32" in out and "trust" not in out


def test_show_and_page_say_which_photos_are_unfamiliar(models, root: Path) -> None:
    _, out, _ = models("show", "birds")
    models("page")
    assert "familiar" not in out and "compared with" not in (root / "index.html").read_text()
    model = tiny_model(familiar=True).SerializeToString()
    build_version(root, "pets", familiar=True, extra_files={"model.int8.onnx": model})
    lines = [line.split() for line in models("show", "pets")[1].splitlines()]
    told = "compared with 99 photos; 0.01 or less is unfamiliar"
    assert ["familiarity", *told.split()] in lines
    assert [*"unfamiliar fp32 0 % of the test photos".split()] in lines
    assert "int8" not in [line[1] for line in lines if line[0] == "unfamiliar"]  # not measured
    models("page")
    title = '"of the test photos: a familiarity of 0.01 or less, compared with 99 photos"'
    found = re.findall(f"title={title}>(.*?)<", (root / "index.html").read_text())
    assert found == ["0 %", "not measured"]
    odd = {"model.int8.onnx": model, "familiarity.json": b"{}"}
    build_version(root, "pets", familiar=True, extra_files=odd)
    status, out, _ = models("show", "pets")
    assert status == 0 and "accuracy fp32" in out and "compared with" not in out


def test_a_name_moves_no_cursor(models, root: Path) -> None:
    build_version(root, "odd", ["a\x1b[2J", "b\nfake: whole"])
    _, out, _ = models("show", "odd")
    assert r"a\x1b[2J, b\nfake: whole" in out and "\x1b" not in out
    assert json.loads(models("show", "odd", "--json")[1])["labels"] == [
        "a\x1b[2J",
        "b\nfake: whole",
    ]
    (root / "pets/1/a\x1b[2J").touch()
    assert models("verify", "pets/1")[1] == "pets/1: a\\x1b[2J is not part of the version\n"


def test_verify_everything(models, root: Path) -> None:
    status, out, _ = models("verify")
    assert status == 0
    assert out.splitlines() == [
        f"{v}: whole and unaltered" for v in ("birds/1", "pets/1", "pets/2")
    ]
    data = bytearray((root / "pets/1/golden.npz").read_bytes())
    data[-1] ^= 1
    (root / "pets/1/golden.npz").write_bytes(data)
    status, out, _ = models("verify")
    assert status == 1
    assert "pets/1: golden.npz is altered: it does not match its digest" in out.splitlines()
    assert models("verify", "pets/2", "birds")[0] == 0
    status, out, _ = models("verify", "pets/1", "--json")
    assert status == 1 and list(json.loads(out)) == ["pets/1"]


def test_promote_and_rollback(models) -> None:
    assert models("promote", "pets/1") == (0, "stable of pets is now version 1\n", "")
    assert models("promote", "pets/2", "--alias", "stable")[0] == 0
    status, out, _ = models("rollback", "pets", "--json")
    assert json.loads(out) == {"name": "pets", "alias": "stable", "version": 1}
    status, out, err = models("rollback", "pets")
    assert (status, out) == (2, "") and "no earlier version" in err


def test_labels_that_change_with_the_alias_are_told(models, root: Path) -> None:
    """Callers that look for a label must learn that it is gone."""
    build_version(root, "birds", ["c", "a", "d", "e"])
    models("promote", "birds/1")
    said = "Its labels are not those of version {}: gone: {}; new: {}\n"
    out = models("promote", "birds/2")[1]
    assert out == "stable of birds is now version 2\n" + said.format(1, "b", "d, e")
    assert models("rollback", "birds")[1].endswith("\n" + said.format(2, "d, e", "b"))


def test_a_broken_version_is_not_promoted(models, root: Path) -> None:
    (root / "pets/2/model.onnx").write_bytes(b"")
    status, _, err = models("promote", "pets/2")
    assert status == 1 and err.startswith("error: pets/2 is not promoted: model.onnx is altered")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["show", "cars"], "error: no model 'cars'; models here: birds, pets"),
        (["show", "pets/7"], "error: model 'pets' has no version 7; newest first: 2, 1"),
        (["show", "pets/live"], "error: model 'pets' has no version or alias 'live'"),
        (["show", f"pets/{'9' * 5000}"], "error: model 'pets' has no version or alias '999"),
        (["show", "../pets"], "error: a name has 1 to 64"),
        (["promote", "pets"], "error: say which version: models promote pets/VERSION"),
        (["promote", "pets/"], "error: no version follows the slash of 'pets/'"),
        (["copy", "pets/2", "--to", ""], "error: the place of a model repository is empty"),
        (["promote", "pets", "2"], "error: unrecognized arguments: 2; write pets/2 (see"),
        (["copy", "pets", "2", "--to", "x"], "error: unrecognized arguments: 2; write pets/2"),
        (["rollback", "pets", "2"], "error: unrecognized arguments: 2 (see"),
        (["list", "2"], "error: unrecognized arguments: 2 (see"),
        (["promote", "pets/1", "--alias", "9"], "error: an alias can't be a number"),
        (["rollback", "cars"], "error: alias 'stable' of 'cars' has no earlier version"),
        (["frobnicate"], "error: argument COMMAND: invalid choice"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(models, arguments, words: str) -> None:
    status, out, err = models(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(words)


def test_no_repository(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["list", "--models", str(tmp_path / "none")])
    assert caught.value.code == 2
    assert "no model repository at" in capsys.readouterr().err


def test_page(models, root: Path) -> None:
    status, out, _ = models("page")
    assert status == 0 and out.strip() == str(root / "index.html")
    page = (root / "index.html").read_text()
    assert "birds" in page and "pets" in page


def test_the_page_rounds_no_share_to_all_or_none(models, root: Path) -> None:
    summary = {
        "photos": 500,
        "clean_accuracy": 1.0,
        "robust_accuracy": [
            {"norm": "linf", "epsilon": k / 255, "accuracy": share}
            for k, share in ((1, 0.996), (2, 0.002), (4, 0.0))
        ],
        "corruption_accuracy": 0.9996,
        "created": "2026-01-01T00:00:00+00:00",
    }
    repository = Repository(root)
    with repository.staging("pets") as folder:
        (folder / "summary.json").write_text(json.dumps(summary))
        repository.attach_analysis("pets", 2, folder)
    models("page")
    page = (root / "index.html").read_text()
    assert "<td>99.60 % at 1/255<br>0.20 % at 2/255<br>0 % at 4/255</td><td>99.96 %</td>" in page


@pytest.mark.parametrize("summary", [b"{}", b"no JSON", b"[" * 100_000])
def test_a_summary_that_is_malformed_costs_its_row_of_the_page(
    models, root: Path, summary: bytes
) -> None:
    repository = Repository(root)
    with repository.staging("pets") as folder:
        (folder / "summary.json").write_bytes(summary)
        repository.attach_analysis("pets", 2, folder)
    assert models("page")[0] == 0
    page = (root / "index.html").read_text()
    assert "summary.json is malformed" in page and page.count("90.0 %") == 2


def test_versions_are_read_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a bucket each waits for several answers."""
    for seed in range(2):
        build_version(tmp_path, "pets", seed=seed)
    both, read = threading.Barrier(2, timeout=30), Repository.manifest

    def manifest(repository: Repository, name: str, version: int) -> Manifest:
        both.wait()
        return read(repository, name, version)

    monkeypatch.setattr(Repository, "manifest", manifest)
    main(["list", "--models", str(tmp_path), "--json"])
    assert [row["version"] for row in json.loads(capsys.readouterr().out)] == [1, 2]


SILENT = """
import os, signal, sys, threading
from serving.models import main
from serving.repository import Repository
def manifest(*_):
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()
Repository.manifest = manifest
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
main(["list", "--models", sys.argv[1]])
"""


def test_ctrl_c_waits_for_no_version_that_is_being_read(root: Path) -> None:
    """As of a bucket that is silent."""
    done = run_python("-c", SILENT, root, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
