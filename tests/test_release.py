"""What a release is made of: the wheel, the site, the version in one place."""

import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.browser import browse
from tests.commands import run_python
from tests.conftest import ROOT
from tests.environments import run_fetching

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def cloned(folder: Path) -> Path:
    done = subprocess.run(["git", "clone", "-q", ROOT, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this is no checkout of a repository: {done.stderr.strip()}")
    return folder


def wheel_of(checkout: Path, umask: int) -> Path:
    """What .ci/dist makes there. Skips where its build packages can't be had."""
    run_fetching("bash", ".ci/dist", cwd=checkout, env=os.environ | {"PATH": PATH}, umask=umask)
    (wheel,) = checkout.glob("dist/*.whl")
    return wheel


def test_the_wheel_is_that_of_the_commit_and_the_same_from_every_checkout(tmp_path: Path) -> None:
    if not shutil.which("uv", path=PATH):
        pytest.skip("no uv beside this Python; `make test` installs it")
    clean, used = cloned(tmp_path / "one"), cloned(tmp_path / "other/place")
    for left in ("build/lib/serving/left.py", "serving/untracked.py"):
        (used / left).parent.mkdir(parents=True, exist_ok=True)
        (used / left).write_text("left = True\n")
    (used / "serving/errors.py").write_text("changed = True\n")
    first, second = wheel_of(clean, umask=0o022), wheel_of(used, umask=0o077)
    assert first.name == f"pawprint-{VERSION}-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (made_by,) = (name for name in archive.namelist() if name.endswith("/WHEEL"))
        setuptools = re.search(r"setuptools \((.+)\)", archive.read(made_by).decode())
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert setuptools and f"setuptools=={setuptools[1]}" in pins
    tracked = subprocess.run(
        ["git", "ls-files", "serving", "trainer", "protos"],
        cwd=clean,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    kinds = (".py", ".pyi", ".proto", ".html", "py.typed")
    assert names == {name for name in tracked if name.endswith(kinds)}


CALLER = """
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import assert_type

from protos.pawprint.v1.classifier_pb2 import ClassifyRequest
from serving.answers import Label, Model, ModelDescription, Response, StreamedResult
from serving.client import AsyncClient, Client, Tls
from serving.errors import Overloaded


def call(client: Client, photos: list[Path]) -> float | None:
    try:
        assert_type(client.classify(photos, model="pets", version=1), Response)
    except Overloaded as error:
        return error.retry_after_s
    assert_type(client.classify(["a.jpg"], model="pets").results[0].label, Label)
    assert_type(client.list_models(), tuple[Model, ...])
    assert_type(client.get_model("pets", "stable").digests, dict[str, str])
    assert_type(client.stream(photos, model="pets"), Generator[StreamedResult, None, None])
    return None


async def wait(photos: list[Path]) -> None:
    async with AsyncClient("localhost:1", tls=Tls(ca="ca.pem"), token=None) as client:
        assert_type(await client.get_model("pets"), ModelDescription)
        assert_type(client.stream(photos, model="pets"), AsyncGenerator[StreamedResult, None])


assert_type(ClassifyRequest(model="pets").model, str)
"""


def test_a_program_against_the_wheel_sees_our_types(tmp_path: Path) -> None:
    if not shutil.which("uv", path=PATH):
        pytest.skip("no uv beside this Python; `make test` installs it")
    wheel = wheel_of(cloned(tmp_path / "clone"), umask=0o022)
    venv.create(tmp_path / "environment", symlinks=True)
    (packages,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "caller.py").write_text(CALLER)
    python = tmp_path / "environment/bin/python"
    command = ("-m", "mypy", "--strict", "--python-executable", python, "caller.py")
    done = run_python(*command, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="pip install '.[release]'")
    folder = tmp_path_factory.mktemp("site")
    done = run_python("-m", "mkdocs", "build", "--strict", "--site-dir", folder)
    assert done.returncode == 0, done.stderr  # also where a link leads nowhere
    return folder


def test_the_site_has_the_pages_that_lie_beside_the_code(site: Path) -> None:
    for page in ("capacity", "benchmarks", "changes", "commands"):
        assert (site / f"{page}.html").exists()


def test_no_fence_of_the_pages_becomes_a_line_of_text_on_the_site(site: Path) -> None:
    for page in site.glob("*.html"):  # as one within a list does
        assert not re.search("<code>(sh|python|json|go|yaml|toml)\n", page.read_text()), page.name


def test_a_wide_table_of_the_site_does_not_widen_a_narrow_page(site: Path, tmp_path: Path) -> None:
    page = site / "observability.html"
    measured = """<script>const e = document.documentElement;
        e.dataset.hidden = e.scrollWidth - e.clientWidth</script>"""
    page.write_text(page.read_text().replace("</body>", f"{measured}</body>"))
    done = browse(page, tmp_path, "--window-size=500,800")
    assert 'data-hidden="0"' in done.stdout


def test_the_first_page_leads_to_every_other_one() -> None:
    others = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs/index.md").read_text())) >= others


def test_nothing_installs_what_another_project_has_under_our_name() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    code = [*(ROOT / "serving").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]
    for path in [*pages, *code]:
        assert not re.search(r"install\s+['\"]?pawprint", path.read_text()), path


def test_the_manifests_name_this_version() -> None:
    text = "".join(path.read_text() for path in (ROOT / "deploy").rglob("*.yaml"))
    tags = re.findall(r"(?:newTag: |image: pawprint-\w+:)(\S+)", text)
    assert len(tags) == 6
    assert {tag.removesuffix("-cuda").removesuffix("-parquet") for tag in tags} == {VERSION}


def test_the_changelog_tells_of_this_version() -> None:
    assert f"## {VERSION} " in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_name_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.match(r"[A-Za-z0-9._-]+==\S+( ; .+)?$", line) for line in lines)


@pytest.mark.parametrize("name", ["Dockerfile.serve", "Dockerfile.train"])
def test_hadolint_finds_nothing_in_the_dockerfiles(name: str) -> None:
    hadolint = shutil.which("hadolint", path=PATH)
    if hadolint is None:
        pytest.skip("no hadolint: pip install '.[release]'")
    done = subprocess.run([hadolint, ROOT / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Dockerfile.serve", "Dockerfile.train"])
def test_what_was_compiled_is_not_compiled_again_at_each_start(tmp_path: Path, name: str) -> None:
    """On a read-only root. The layer with Pawprint's own files is made here as it is there."""
    source, added = tmp_path / "opt/pawprint/ours.py", tmp_path / "added"
    source.parent.mkdir(parents=True)
    source.write_text("")
    os.utime(source, (1e9, 1e9))
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    (tmp_path / "marker").touch()
    os.utime(tmp_path / "marker", (1e9, 1e9))
    added.mkdir()
    commands = (ROOT / name).read_text()
    (copy,) = re.findall(r"(?s) && (find /opt/pawprint -cnewer .+? \+)\n", commands)
    copy = re.sub(r"/(?=opt/|marker|added)", f"{tmp_path}/", copy)
    subprocess.run(copy, shell=True, check=True, timeout=60)
    folder = added / source.parent.relative_to("/")
    done = run_python("-v", "-c", "import ours", env=os.environ | {"PYTHONPATH": str(folder)})
    assert f"matches {folder}/ours.py" in done.stderr
