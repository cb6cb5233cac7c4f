"""The command `analyze` on a real version, as a user would run it."""

import copy
import html
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from serving.client import Client
from serving.modelspec import Preprocessing
from serving.percent import percent
from serving.preprocess import preprocess
from serving.repository import Repository
from tests.analysis.conftest import run_here
from tests.browser import browse
from tests.commands import ASCII_LOCALE, run_python
from tests.tiny import build_version
from tests.warm import Warm, run_warm
from trainer.analysis import run as analysis_run
from trainer.analysis.analyze import main
from trainer.analysis.carry_out import _classes
from trainer.analysis.headline import in_words, side_by_side
from trainer.analysis.report import MOST_CLASSES, NAMED, render
from trainer.analysis.strangers import GIVEN, STRANGERS
from trainer.analysis.subject import load_subject
from trainer.analysis.workspace import Task, Workspace, run_tasks
from trainer.cartoons import write_cartoons
from trainer.onnx_runner import OnnxRunner
from trainer.train import main as train

ANALYZE = "trainer.analysis.analyze"
SMALL = ("--budget", "quick", "--photos", 4, "--linf", "8/255", "--l2", "1", "--ideal", "none")
DRAW = """
import json, sys
from pathlib import Path
from trainer.analysis.report import render
folder = Path(sys.argv[1])
page = render(json.loads((folder / "report.json").read_bytes()), folder)
sys.stdout.buffer.write(page.encode())
"""


def command(trained, *flags):
    return ["cartoon", "--data", trained.data, "--models", trained.models, *flags]


def analyze(trained, *flags, status=0):
    return here(*command(trained, *flags), status=status)


def here(*arguments, status=0):
    """Run `analyze` in this process; returns what it printed."""
    return run_here(main, *arguments, status=status)


def report_of(trained):
    return json.loads((trained.models / "cartoon/1/analysis/report.json").read_text())


def figures(report):
    """All that must not depend on when and by whom it was measured."""
    kept = copy.deepcopy({key: value for key, value in report.items() if key != "run"})
    for attack in kept["attacks"]:
        del attack["seconds"]
    return kept


@pytest.fixture(scope="module")
def analysed(trained_once, tmp_path_factory):
    """Analysed whole, ideal images too; not to be spoiled."""
    models = tmp_path_factory.mktemp("analysed") / "models"
    shutil.copytree(trained_once.models, models)
    twin = type(trained_once)(models=models, data=trained_once.data)
    said = analyze(twin, "--budget", "quick", "--photos", 8, "--linf", "8/255,16/255", "--l2", "1")
    assert str(models / "cartoon/1/analysis/report.html") in said
    return twin


def test_the_analysis_is_part_of_the_version_and_whole(analysed):
    repository = Repository(analysed.models)
    assert repository.verify("cartoon", 1) == []
    report = report_of(analysed)
    assert report["data"]["photos"] == 8
    assert report["model"]["name"] == "cartoon" and report["schema_version"] == 1
    assert not list(analysed.models.glob("cartoon/.*")), "nothing is left beside the version"


def keys_in(value, at=""):
    """The place of every key; of a list, those of its first item, and its own where it has none, as
    where there is null in its place."""
    if isinstance(value, dict):
        return [place for key, inner in value.items() for place in keys_in(inner, f"{at}.{key}")]
    if isinstance(value, list):
        return keys_in(value[0], f"{at}[]") if value else [f"{at}[]"]
    return [at, f"{at}[]"] if value is None else [at]


def test_no_key_of_the_report_is_gone_that_its_schema_version_had(analysed):
    """What programs read; a new key may come, and is added to the list."""
    report = report_of(analysed)
    listed = Path(__file__).with_name(f"report-{report['schema_version']}.txt")
    released = listed.read_text().split()
    now = keys_in(report)
    empty = tuple(key for key in now if key.endswith("[]"))
    gone = [key for key in released if key not in now and not key.startswith(empty)]
    assert not gone, "raise SCHEMA_VERSION of trainer/analysis/run.py, and write another list"


def test_only_test_photos_are_used(analysed):
    split = json.loads((analysed.models / "cartoon/1/split.json").read_text())
    tests = {file for files in split["test"].values() for file in files}
    shown = {entry["file"] for entry in report_of(analysed)["adversarial"]}
    assert shown and shown <= tests


def test_the_worst_case_is_at_most_each_attack_and_falls_with_the_size(analysed):
    report = report_of(analysed)
    for attack in report["attacks"]:
        worst = report["worst_case"][attack["norm"]]
        for point, bound in zip(attack["points"], worst, strict=True):
            assert bound["correct"] <= point["correct"] <= report["clean"]["fp32"]["correct"]
            assert point["low"] <= point["accuracy"] <= point["high"]
    left = [point["correct"] for point in report["worst_case"]["linf"]]
    assert left == sorted(left, reverse=True)
    for norm, points in report["worst_case"].items():  # the distribution says the same
        found = report["smallest"][norm]["found"]
        turned = [sum(size <= point["epsilon"] + 1e-5 for size in found) for point in points]
        right = report["clean"]["fp32"]["correct"]
        assert [right - point["correct"] for point in points] == turned


def test_saved_pictures_are_within_their_stated_size_and_pass_through_to_the_bit(analysed):
    folder = analysed.models / "cartoon/1/analysis"
    spec = Repository(analysed.models).manifest("cartoon", 1).preprocessing
    for entry in report_of(analysed)["adversarial"]:
        original, picture = (
            np.asarray(Image.open(folder / entry[key])).astype(int)
            for key in ("original", "picture")
        )
        difference = (picture - original) / 255
        assert np.abs(difference).max() == pytest.approx(entry["linf"])
        assert np.sqrt((difference**2).sum()) == pytest.approx(entry["l2"])
        if entry["attack"].endswith("linf") or entry["attack"] == "pgd-linf-targeted":
            assert entry["linf"] <= 16 / 255 + 1e-9
        served = preprocess((folder / entry["picture"]).read_bytes(), spec)
        assert np.array_equal(served, picture)


def test_saved_pictures_fool_the_server_over_grpc_and_getmodel_has_the_summary(analysed, start):
    report, folder = report_of(analysed), analysed.models / "cartoon/1/analysis"
    assert len(report["adversarial"]) >= 4
    with Client(start(analysed.models).address) as client:
        for entry in report["adversarial"]:
            best = (
                client.classify([folder / entry["picture"]], model="cartoon").results[0].labels[0]
            )
            assert best.name == entry["after"]["label"] != entry["label"]
            assert best.probability == pytest.approx(entry["after"]["probability"], abs=1e-4)
        for ideal in report["ideal"]:
            best = (
                client.classify([folder / ideal["picture"]], model="cartoon").results[0].labels[0]
            )
            assert ideal["reached"] == (
                best.name == ideal["label"] and best.probability >= report["ideal_goal"]
            )
        described = client.get_model("cartoon")
    robustness, trust = described.robustness, described.trust
    assert robustness.photos == 8
    assert robustness.clean_accuracy == pytest.approx(report["clean"]["fp32"]["accuracy"])
    assert [point.accuracy for point in robustness.robust_accuracy] == pytest.approx(
        [p["accuracy"] for points in report["worst_case"].values() for p in points]
    )
    shown = [t for t in report["trust"]["thresholds"] if t["threshold"] is not None]
    assert trust.photos == report["trust"]["photos"] > robustness.photos == 8
    assert [(t.accuracy, t.probability, t.answered) for t in trust.thresholds] == [
        pytest.approx((t["accuracy"], t["threshold"], t["answered"])) for t in shown
    ]


def test_the_words_of_the_report_say_of_which_photos_they_speak(analysed):
    page = (analysed.models / "cartoon/1/analysis/report.html").read_text()
    right = report_of(analysed)["clean"]["fp32"]["correct"]
    assert page.count(f"of the {right} photos that are right as they are") == 3  # and the descent
    assert "have the content or the names" not in page, "none of them was learnt from"
    assert "(the classes take turns)" in page and "attacked by PGD" in page
    lines = any(row["threshold"] is not None for row in report_of(analysed)["trust"]["thresholds"])
    assert ("Grey lines: the probabilities of the first table." in page) is lines
    assert "points below clean" in page or "points above clean" in page


def test_a_report_of_all_photos_and_of_many_that_were_left_out_says_so(analysed):
    report, folder = report_of(analysed), analysed.models / "cartoon/1/analysis"
    run = report["run"] | {"settings": report["run"]["settings"] | {"photos": None}}
    out = [{"file": f"{k}.jpg", "reason": "cut short"} for k in range(23)]
    page = render(report | {"run": run, "data": report["data"] | {"left_out": out}}, folder)
    assert "<td>photos</td><td>all</td>" in page and "take turns" not in page
    assert "<bdi>19.jpg</bdi> (cut short) and 3 more.</p>" in page


def test_the_report_is_the_same_in_a_locale_that_is_not_utf_8(analysed):
    folder = analysed.models / "cartoon/1/analysis"
    done = run_python("-c", DRAW, folder, text=False, env=os.environ | ASCII_LOCALE)
    assert done.stdout == (folder / "report.html").read_bytes(), done.stderr


def test_a_report_of_many_classes_names_some_and_embeds_few_animations(analysed):
    report, drawn = report_of(analysed), 100
    one = report["ideal"][0] | {"reached": False}
    many = [one | {"label": f"class {k}"} for k in range(drawn)]
    page = render(report | {"ideal": many}, analysed.models / "cartoon/1/analysis")
    assert page.count('alt="ideal class ') == drawn
    assert page.count(' from noise" loading') == MOST_CLASSES < drawn
    assert f"<bdi>class {NAMED - 1}</bdi> and {drawn - NAMED} more." in page
    assert f"class {NAMED - 1} and {drawn - NAMED} more\n" in in_words(report | {"ideal": many}, "")


@pytest.mark.parametrize(
    ("asked", "classes", "drawn"),
    [(None, 100, None), (None, 101, 100), ("all", 101, None), ("none", 101, 0), ("c7,c9", 101, 2)],
)
def test_ideal_images_of_very_many_classes_are_drawn_if_they_are_asked_for(asked, classes, drawn):
    chosen = _classes(asked, [f"c{k}" for k in range(classes)])
    assert drawn == (chosen if chosen is None else len(chosen))


def test_a_report_says_that_some_classes_are_not_drawn(analysed):
    report, folder = report_of(analysed), analysed.models / "cartoon/1/analysis"
    assert "Drawn are" not in render(report, folder)
    some = render(report | {"ideal": report["ideal"][:1]}, folder)
    assert "Drawn are 1 of 2 classes" in some


def test_a_browser_shows_the_figures_of_the_report(analysed, tmp_path):
    page = analysed.models / "cartoon/1/analysis/report.html"
    assert not re.search(r'(src|href)="(?!data:|#)', page.read_text()), (
        "the page needs nothing else"
    )
    done = browse(page, tmp_path)
    shown = dict(re.findall(r'data-figure="(\w+)"[^>]*>([^<]*)<', html.unescape(done.stdout)))
    report = report_of(analysed)
    reference = next(
        p for p in report["worst_case"]["linf"] if p["epsilon"] == report["reference"]["epsilon"]
    )
    passed = [check["passed"] for check in report["sanity"] if check["passed"] is not None]
    assert shown == {
        "clean": percent(report["clean"]["fp32"]["accuracy"]),
        "robust": percent(reference["accuracy"]),
        "corruptions": percent(report["corruptions"]["mean_accuracy"]),
        "sanity": f"{sum(passed)} of {len(passed)}",
    }
    assert done.stdout.count("<svg") >= 5


def test_a_narrow_window_shows_the_tables_on_trust_whole_and_plots_that_can_be_read(
    analysed, tmp_path
):
    # A window of Chromium without a head is never narrower than 500 pixels; a frame is.
    framed = """<!doctype html><iframe width="375" height="800" style="border:0"></iframe><script>
        const frame = document.querySelector("iframe"), out = document.documentElement.dataset
        const hidden = e => e.scrollWidth - e.clientWidth
        frame.onload = () => {
            const page = frame.contentDocument, all = s => [...page.querySelectorAll(s)]
            out.hidden = all("#trust ~ .few").map(hidden)
            out.wide = all(".plot > svg").map(e => e.clientWidth)
            out.sideways = hidden(page.documentElement) }
        frame.srcdoc = PAGE</script>"""
    page, report = tmp_path / "page.html", report_of(analysed)
    long = report["ideal"][0] | {"label": "breed_" * 20, "reached": False}
    drawn = render(report | {"ideal": [long]}, analysed.models / "cartoon/1/analysis")
    page.write_text(framed.replace("PAGE", json.dumps(drawn).replace("</", "<\\/")))
    done = browse(page, tmp_path)
    found = dict(re.findall(r'data-(\w+)="([-\d,]+)"', done.stdout[:1000]))
    assert found["hidden"] == "0,0,0"
    widths = found["wide"].split(",")
    assert len(widths) >= 5 and all(int(wide) > 500 for wide in widths)
    assert found["sideways"] == "0", "a plot is scrolled, not the page"


def test_pictures_of_none_of_the_classes_are_judged_too(trained, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (80 * number, 90, 10)).save(others / f"{number}.png")
    said = analyze(trained, *SMALL, "--strangers", others)
    kinds = [row["kind"] for row in report_of(trained)["trust"]["strangers"]]
    assert kinds == [*STRANGERS, GIVEN]
    (given,) = [r for r in report_of(trained)["trust"]["strangers"] if r["kind"] == GIVEN]
    assert given["pictures"] == 3 and given["median"] >= 0.5
    told = Repository(trained.models).manifest("cartoon", 1)
    meant = Repository(trained.models).familiarity(told)
    assert meant is not None
    section = report_of(trained)["trust"]["familiarity"]
    assert (section["photos"], section["threshold"]) == (meant.photos, meant.threshold)
    assert len(section["attacked"]) == 4
    for row in section["attacked"]:
        assert 0 <= row["unfamiliar"] <= 1 if row["images"] else row["unfamiliar"] is None
    assert 0 <= given["unfamiliar"] <= 1 and f"{percent(given['unfamiliar'])} of given" in said
    assert "of given" in said and "these photos show no probability" in said
    assert (trained.models / "cartoon/1/analysis/strangers/given.webp").is_file()


def test_photos_that_the_version_learnt_from_are_told_in_the_report_too(trained, tmp_path):
    """Who reads it later has not seen what the command printed."""
    for number, photo in enumerate(sorted(trained.data.glob("*/*"))):
        label = tmp_path / "renamed" / photo.parent.name
        label.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, label / f"{number}{photo.suffix}")
    said = here("cartoon", "--data", tmp_path / "renamed", "--models", trained.models, *SMALL)
    report = report_of(trained)
    assert 0 < report["data"]["known"] <= 4 < report["trust"]["known"]
    told = f"{report['trust']['known']} have the content or the names of photos that the version"
    assert f"Warning: {told}" in said
    page = (trained.models / "cartoon/1/analysis/report.html").read_text()
    assert f"{report['trust']['known']} photos have the content or the names of photos" in page


def test_strangers_that_are_not_there_are_an_error_before_any_work(trained, tmp_path):
    said = analyze(trained, *SMALL, "--strangers", tmp_path / "none", status=2)
    assert "no folder" in said and "Traceback" not in said
    assert not list(trained.models.glob("cartoon/.analysis-*"))


def interrupted_after(count):
    """What runs tasks, until Ctrl-C."""

    def run(tasks, *arguments, **named):
        run_tasks(tasks[:count], *arguments, **named)
        raise KeyboardInterrupt

    return run


def test_stopped_half_way_it_goes_on_and_the_same_seed_gives_the_same_figures(trained, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(analysis_run, "run_tasks", interrupted_after(9))
        assert "goes on" in analyze(trained, *SMALL, status=130)
    assert not (trained.models / "cartoon/1/analysis").exists()
    kept = list(trained.models.glob("cartoon/.analysis-*/*.npz"))
    assert len(kept) == 9
    (piece,) = trained.models.glob("cartoon/.analysis-*/attack~pgd-linf~0.npz")
    arrays = dict(np.load(piece))
    arrays["served"] = arrays["served"][..., ::-1]  # a mark: if it is computed anew this is gone
    arrays["seconds"] = np.array(1000.0)
    np.savez(piece, **arrays)
    analyze(trained, *SMALL)
    assert report_of(trained)["run"]["seconds"] > 1000, "of both runs"
    marked = figures(report_of(trained))
    analyze(trained, *SMALL)
    again = figures(report_of(trained))
    assert marked != again, "finished pieces are taken as they are"
    unmarked = [a for a in again["attacks"] if a["key"] != "pgd-linf"]
    assert [a for a in marked["attacks"] if a["key"] != "pgd-linf"] == unmarked
    assert marked["corruptions"] == again["corruptions"] and marked["smallest"] == again["smallest"]


def test_one_that_other_code_has_begun_is_named_once(trained, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(analysis_run, "run_tasks", interrupted_after(2))
        begun = analyze(trained, *SMALL, status=130)
        other = analyze(trained, *SMALL, "--seed", 1, status=130)
        patch.setattr(analysis_run, "digest_code", lambda: "other")
        anew = analyze(trained, *SMALL, status=130)
        goes_on = analyze(trained, *SMALL, status=130)
    said = "An unfinished analysis like this one was begun by other code"
    assert [said in text for text in (begun, other, anew, goes_on)] == [False, False, True, False]


def of_two(rank):
    """What torchrun sets."""
    given = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return {**os.environ, **given}


def test_two_processes_give_the_same_report(trained, tmp_path):
    analyze(trained, *SMALL)
    alone = figures(report_of(trained))
    processes = [
        Warm("-m", ANALYZE, *command(trained, *SMALL), env=of_two(rank)) for rank in (0, 1)
    ]
    for process in processes:
        said = process.communicate(240)
        assert process.returncode == 0, said
    together = figures(report_of(trained))
    assert together["worst_case"] == alone["worst_case"]
    assert together["attacks"] == alone["attacks"]
    assert together["corruptions"] == alone["corruptions"]


def test_the_first_process_makes_the_pieces_of_another_that_never_comes_to_them(trained):
    """It has ended, or keeps them in a folder of another machine, as of a bucket's versions."""
    done = run_warm("-m", ANALYZE, *command(trained, *SMALL), env=of_two(0), timeout=240)
    assert done.returncode == 0, done.stderr
    assert len(report_of(trained)["attacks"]) > 1


def test_a_piece_that_another_process_is_at_is_left_to_it(tmp_path):
    made = []
    tasks = [
        Task(name=name, run=lambda name=name: made.append(name) or {"x": np.zeros(1)})
        for name in ("one", "other")
    ]
    workspace = Workspace(tmp_path, {})
    with workspace.at("one"):
        run_tasks(tasks, workspace, rank=0, processes=1, done=lambda _: None)
        assert made == ["other"]
    run_tasks(tasks, workspace, rank=0, processes=1, done=lambda _: None)
    assert made == ["other", "one"]


def test_one_that_was_started_alone_reports_whatever_rank_stands_there(trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    analyze(trained, *SMALL)
    assert report_of(trained)["model"]["name"] == "cartoon"


def test_the_same_analysis_twice_at_once_is_refused(trained, monkeypatch):
    said = []

    def another_meanwhile(tasks, *arguments, **named):
        run_tasks(tasks[:9], *arguments, **named)
        with monkeypatch.context() as patch:
            patch.setattr(analysis_run, "run_tasks", run_tasks)
            said.append(analyze(trained, *SMALL, status=75))
        run_tasks(tasks[9:], *arguments, **named)

    monkeypatch.setattr(analysis_run, "run_tasks", another_meanwhile)
    analyze(trained, *SMALL)
    assert "error: another process is analysing cartoon/1 in the same way; wait for it" in said[0]
    assert not list(trained.models.glob("cartoon/.analysis-*"))


def test_fail_under_is_a_gate(trained):
    said = analyze(trained, *SMALL, "--fail-under", "clean=0.1", "--fail-under", "pgd@8/255=1.0",
                   "--fail-under", "worst@8/255=0", status=1)  # fmt: skip
    assert "failed: pgd@8/255=1.0" in said and said.count("failed: ") == 1, "as much is enough"


def test_a_version_that_is_never_right_is_no_mistake_of_the_user(trained_once, tmp_path):
    """Photos that it knows, each under the other label."""
    subject = load_subject(Repository(trained_once.models), "cartoon", 1, torch.device("cpu"))
    for label, other in itertools.permutations(subject.labels):
        files = sorted((trained_once.data / label).iterdir())
        spec = subject.manifest.preprocessing
        said = subject.verdict(np.stack([preprocess(file.read_bytes(), spec) for file in files]))
        right = [f for f, best in zip(files, said.argmax(axis=1), strict=True)
                 if subject.labels[best] == label]  # fmt: skip
        (tmp_path / other).mkdir()
        for file in right[:3]:
            shutil.copy(file, tmp_path / other / f"of-{label}-{file.name}")
    others = type(trained_once)(models=trained_once.models, data=tmp_path)
    for gate in ((), ("--fail-under", "clean=0.9")):
        said = analyze(others, *SMALL, "--photos", 6, *gate, status=1)
        assert f"error: cartoon/1 is wrong on all 6 photos of {tmp_path}; is this the data" in said


def test_over_grpc_asks_the_server(trained, start):
    server = start(trained.models)
    analyze(trained, *SMALL, "--over-grpc", server.address)
    entries = report_of(trained)["adversarial"]
    assert entries
    for entry in entries:
        assert entry["grpc"]["label"] == entry["after"]["label"]


def test_a_server_that_is_not_there_is_an_error_and_changes_nothing(trained):
    said = analyze(trained, *SMALL, "--over-grpc", "127.0.0.1:1", status=75)
    assert "does not answer" in said and "Traceback" not in said
    assert not (trained.models / "cartoon/1/analysis").exists()


def test_a_mistake_in_asking_the_server_is_no_trouble_that_passes(trained, start, tmp_path):
    build_version(tmp_path / "else", "pets")
    server = start(tmp_path / "else")
    said = analyze(trained, *SMALL, "--over-grpc", server.address, status=2)
    assert "cartoon" in said and not (trained.models / "cartoon/1/analysis").exists()
    missing = ("--over-grpc", server.address, "--tls-ca", tmp_path / "no.pem")
    assert "no.pem can't be read" in analyze(trained, *SMALL, *missing, status=2)


@pytest.mark.slow
def test_a_server_that_goes_away_meanwhile_costs_no_report(trained, start, monkeypatch):
    server = start(trained.models)

    def then_stop(*arguments, **options):
        run_tasks(*arguments, **options)
        server.stop()

    monkeypatch.setattr(analysis_run, "run_tasks", then_stop)
    said = analyze(trained, *SMALL, "--over-grpc", server.address, status=75)
    assert "the report is stored, without the server's verdicts" in said
    assert all(entry["grpc"] is None for entry in report_of(trained)["adversarial"])


def test_compare_puts_two_versions_side_by_side(trained, tmp_path, monkeypatch):
    """The second is trained against an adversary, sees both ways, and has an int8 file that is
    judged too."""
    shutil.copytree(trained.models, tmp_path / "twice")
    run_here(
        train,
        *("--data", trained.data, "--name", "cartoon", "--size", 32),
        *("--backbone", "tiny", "--weights", "none", "--epochs", 6, "--out", tmp_path / "twice"),
        *("--adversarial", "fast@1/255", "--learning-rate", 0.003),
        *("--int8", "--max-accuracy-loss", 0.5, "--mirror"),
    )
    monkeypatch.chdir(tmp_path)
    said = here(
        *("--compare", "cartoon/1", "cartoon/2", "--json", "--budget", "quick", "--photos", 6),
        *("--data", trained.data, "--models", tmp_path / "twice"),
    )
    made = json.loads(said)
    assert [v["version"] for v in made["versions"]] == ["cartoon/1", "cartoon/2"]
    assert [v["defence"] for v in made["versions"]] == ["none", "fast@1/255"]
    assert [v["mirror"] for v in made["versions"]] == [False, True]
    assert [v["picture_size"] for v in made["versions"]] == [32, 32]
    one, other, change = side_by_side(made).splitlines()
    pair = made["paired"]
    assert pair["gained"] - pair["lost"] == pair["correct"][1] - pair["correct"][0]
    assert change.startswith("from cartoon/1 to cartoon/2: ") and "points" in change
    assert "both ways" not in one and "cartoon/2: seen both ways; defence" in other
    for version in made["versions"]:
        left = [version["clean"]["correct"], *(p["correct"] for p in version["robust"])]
        assert left == sorted(left, reverse=True) and len(left) == 5
    for i in (0, 1):
        other = made["transfer"][i][1 - i]
        assert made["transfer"][i][i] >= other, "an attack is strongest where it was made"
    page = (tmp_path / "compare-cartoon-1-cartoon-2.html").read_text()
    assert "<td>seen</td><td>as it is</td><td>both ways</td>" in page
    _sort_by_the_net(tmp_path / "others", tmp_path / "twice/cartoon/2")
    said = here("cartoon/2", *SMALL, "--data", tmp_path / "others", "--models", tmp_path / "twice")
    assert "sees         each picture and its mirror image\n" in said
    report = (tmp_path / "twice/cartoon/2/analysis/report.html").read_text()
    assert "2 classes, each picture seen both ways (as it is and mirrored). " in report
    _check_that_each_precision_was_judged(tmp_path / "twice/cartoon/2", tmp_path / "others")
    for name, to in (("cats", "owls"), ("dogs", "cats"), ("owls", "dogs")):  # none is right now
        (tmp_path / "others" / name).rename(tmp_path / "others" / to)
    said = here(
        *("--compare", "cartoon/2", "cartoon/2", "--budget", "quick", "--photos", 2),
        *("--data", tmp_path / "others", "--models", tmp_path / "twice"),
    )
    assert said.count("its images at 4/255 turn no photo: none is right in both") == 2
    page = (tmp_path / "compare-cartoon-2-cartoon-2.html").read_text()
    assert "<td>made against cartoon/2</td><td>-</td><td>-</td>" in page


def test_compare_says_its_figures_where_the_page_can_not_be_written(trained_once, monkeypatch):
    """And takes any seed that one version by itself does."""
    flags = ("--data", trained_once.data, "--models", trained_once.models, "--budget", "quick")
    monkeypatch.chdir("/sys")  # nobody writes there, root neither
    said = here(
        *("--compare", "cartoon/1", "cartoon/1", *flags, "--photos", 2, "--seed", 2**80), status=2
    )
    assert "cartoon/1: defence none" in said and "there is no page" in said


def test_a_gate_on_the_change_between_two_versions(trained_once, tmp_path, monkeypatch):
    """Of a version with itself nothing changes, which these few photos show to some points."""
    monkeypatch.chdir(tmp_path)
    both = ("--compare", "cartoon/1", "cartoon/1", "--data", trained_once.data, "--photos", 2)
    gate = (*both, "--models", trained_once.models, "--budget", "quick", "--fail-under")
    assert "(0 gained, 0 lost): +0.0 points" in here(*gate, "change=-0.5")
    assert "failed: change=0: it may be as low as -0.0" in here(*gate, "change=0", status=1)
    said = here("cartoon/1", *gate[3:], "change=-0.5", status=2)
    assert "'change=-0.5' is of two versions: give them by --compare" in said


def _check_that_each_precision_was_judged(version, data):
    report = json.loads((version / "analysis/report.json").read_text())
    assert report["model"]["precisions"] == ["fp32", "int8"]
    assert report["model"]["defence"] == "fast@1/255"
    points = [point for attack in report["attacks"] for point in attack["points"]]
    assert all(point["by_precision"].keys() == {"fp32", "int8"} for point in points)
    runner = OnnxRunner(version / "model.int8.onnx")
    for entry in report["adversarial"]:
        pixels = np.asarray(Image.open(version / "analysis" / entry["picture"]))[None]
        scores, said = runner.run(pixels, 1)[0][0], entry["by_precision"]["int8"]
        assert said["label"] == report["model"]["labels"][scores.argmax()]
        assert said["probability"] == pytest.approx(scores.max(), abs=1e-4)
    _check_the_thresholds(report["trust"], version, data)


def _sort_by_the_net(folder, version):
    """160 new cartoons in folders of the classes that the version takes them for, of which neither
    may be empty."""
    write_cartoons(folder, per_class=80, seed=6)
    files, pixels, _ = _photos_below(folder)
    said = OnnxRunner(version / "model.onnx").run(pixels)[0].argmax(axis=1)
    said[:2] = 0, 1
    for file, label in zip(files, said, strict=True):  # no name is one of the split
        file.rename(folder / ("cats", "dogs")[label] / f"new_{file.name}")


def _photos_below(folder):
    """Files, uint8 [n, 32, 32, 3], labels."""
    files = sorted(folder.glob("*/*"))
    spec = Preprocessing(size=32, interpolation="bilinear")
    pixels = np.stack([preprocess(file.read_bytes(), spec) for file in files])
    return files, pixels, np.array([("cats", "dogs").index(file.parent.name) for file in files])


def _check_the_thresholds(trust, version, data):
    """Of each file, on all test photos, though four were attacked."""
    files, pixels, labels = _photos_below(data)
    assert trust["photos"] == len(files) > 4
    assert {row["precision"] for row in trust["thresholds"]} == {"fp32", "int8"}
    shown = [row for row in trust["thresholds"] if row["threshold"] is not None]
    assert shown
    for row in shown:
        file = {"fp32": "model.onnx", "int8": "model.int8.onnx"}[row["precision"]]
        scores = OnnxRunner(version / file).run(pixels)[0]
        answered = scores.max(axis=1) >= row["threshold"]
        assert row["answered"] == answered.mean()
        assert row["measured"] == (scores.argmax(axis=1) == labels)[answered].mean()
    told = json.loads((version / "analysis/trust.json").read_text())["thresholds"]
    assert [t["probability"] for t in told] == [row["threshold"] for row in shown]
    page = (version / "analysis/report.html").read_text()
    assert "<th>file</th>" in page and "<td>int8</td>" in page


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--linf", "0"), "above 0"),
        (("--linf", "300/255"), "up to 1"),
        (("--linf", "x"), "such as 1/255"),
        (("--linf", ",".join(["nan", *(f"{k}/255" for k in range(1, 99))])), "up to 1"),
        (("--photos", "²"), "1 or more"),  # a digit to str
        (("--photos", "0"), "1 or more"),
        (("--ideal", "cat"), "did you mean 'cats'?"),
        (("--ideal", ","), "--ideal takes classes with commas, all or none"),
        (("--fail-under", "pgd"), "pgd@4/255=0.2"),
        (("--fail-under", "pdg@4/255=0.2"), "did you mean pgd"),  # before anything is done
        (("--linf", "1/255", "--fail-under", "worst@8/255=0.2"), "but at 1/255, 4/255"),
        (("--l2", "0.5", "--fail-under", "pgd-l2@2=0.2"), "but at 0.5"),
        (("--seed", "-1"), "0 or more"),
        (("--data", "/nowhere"), "no folder /nowhere"),
        (("--data", ""), "data must not be empty"),
        (("--data", "caf\udce9"), "is not UTF-8"),  # it would end at the report
        (("--device", "cuda"), "--device cpu"),
    ],
)
def test_wrong_flags_say_what_to_do(trained_once, flags, words):
    said = analyze(trained_once, *SMALL[:2], *flags, status=2)
    assert words in said and "Traceback" not in said


def test_compare_refuses_what_it_would_not_heed(trained_once):
    """A gate that is not looked at would always be open."""
    both = ("--compare", "cartoon/1", "cartoon/1", "--data", trained_once.data)
    for flag in (("--fail-under", "clean=1.0"), ("--linf", "1/255"), ("--recipe", "lesson")):
        said = here(*both, "--models", trained_once.models, *flag, status=2)
        assert f"{flag[0]} can't be had with --compare" in said


def test_an_unknown_model_names_those_that_are_there(trained_once):
    said = here("dogs", "--data", ".", "--models", trained_once.models, status=2)
    assert "cartoon" in said and "Traceback" not in said


def test_gradients_on_a_gpu_are_of_whole_float32(trained_once, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as PyTorch has it
    analyze(trained_once, "--ideal", "birds", status=2)
    assert not torch.backends.cudnn.allow_tf32


def test_other_classes_are_listed(trained_once, tmp_path):
    shutil.copytree(trained_once.data / "cats", tmp_path / "data" / "cats")
    shutil.copytree(trained_once.data / "dogs", tmp_path / "data" / "birds")
    said = analyze(trained_once, "--data", tmp_path / "data", status=2)
    assert "birds" in said and "cats, dogs" in said


def test_photos_that_can_not_be_read_leave_no_analysis(trained_once, tmp_path):
    for species in ("cats", "dogs"):
        (tmp_path / "data" / species).mkdir(parents=True)
        (tmp_path / "data" / species / "x.jpg").write_bytes(b"no photo")
    said = analyze(trained_once, "--data", tmp_path / "data", status=2)
    assert "no photo that can be used" in said


@pytest.mark.parametrize("file", ["weights.safetensors", "model.onnx", "manifest.json"])
def test_an_altered_version_is_refused(trained, file):
    path = trained.models / "cartoon/1" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = analyze(trained, *SMALL, status=1)
    assert "Traceback" not in said and file.partition(".")[0] in said
    assert not (trained.models / "cartoon/1/analysis").exists()


def test_a_full_disk_leaves_the_version_as_it_was(trained):
    before = sorted(p for p in (trained.models / "cartoon/1").rglob("*"))
    code = f"""
import resource, sys
from {ANALYZE} import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.exit(main(sys.argv[1:]))
"""
    done = run_warm("-c", code, *command(trained, *SMALL))
    assert done.returncode == 75
    assert "as it was" in done.stderr and "Traceback" not in done.stderr
    assert sorted(p for p in (trained.models / "cartoon/1").rglob("*")) == before
    assert Repository(trained.models).verify("cartoon", 1) == []
