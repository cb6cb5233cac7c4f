"""The Node example, as its README has it, against a server in a process of its own."""

import os
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from serving.client import Client
from tests.certificates import Authority
from tests.conftest import ROOT, ServerProcess
from tests.environments import run_fetching
from tests.photos import black, jpeg, noise
from tests.tiny import build_version

EXAMPLE = ROOT / "examples/node"

Classify = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def classify(server: ServerProcess) -> Classify:
    """Runs classify.js; installs its packages into node_modules (ignored by git) if need be."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no node and npm here")
    if not (EXAMPLE / "node_modules/@grpc/grpc-js").is_dir():
        run_fetching(npm, "install", "--prefer-offline", "--no-progress", cwd=EXAMPLE)

    def run(
        *arguments: object, address: str = server.address, token: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [node, "classify.js", "--address", address, *map(str, arguments)],
            cwd=EXAMPLE,
            env={**os.environ, "PAWPRINT_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.jpg" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(jpeg(seed=seed))
    return paths


def test_it_says_what_the_python_client_says(
    classify: Classify, server: ServerProcess, photos: list[Path]
) -> None:
    done = classify("--model", "pets", "--top-k", 2, *photos)
    assert (done.returncode, done.stderr) == (0, "")
    with Client(server.address) as client:
        results = client.classify(photos, model="pets", top_k=2).results
    assert done.stdout.splitlines() == [
        f"{path}: " + ", ".join(f"{x.name} {x.probability:.4f}" for x in result.labels)
        for path, result in zip(photos, results, strict=True)
    ]


def test_an_unfamiliar_photo_is_marked(
    classify: Classify, tmp_path: Path, start: Callable[..., ServerProcess]
) -> None:
    build_version(tmp_path / "models", "pets", familiar=True)
    strange, known = tmp_path / "black.png", tmp_path / "noise.png"
    strange.write_bytes(black())
    noise(32).save(known)
    server = start(tmp_path / "models")
    done = classify("--model", "pets", strange, known, address=server.address)
    marked = [f"{strange}: unfamiliar: " in done.stdout, f"{known}: unfamiliar" in done.stdout]
    assert (done.returncode, marked) == (0, [True, False])


def test_a_bad_photo_has_its_own_error(classify: Classify, photos: list[Path]) -> None:
    photos[1].write_bytes(b"junk")
    done = classify("--model", "pets", *photos)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert f"{photos[1]}: error: not an image" in lines[1] and len(lines) == 3


def test_errors_are_one_line(classify: Classify, photos: list[Path]) -> None:
    for arguments, words in (
        (["--model", "cars", photos[0]], "error: no model 'cars' is served"),
        ([photos[0]], "error: say which model and photos"),
        (["--model", "pets", "/nowhere.jpg"], "error: ENOENT"),
    ):
        done = classify(*arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(words)


def test_tls_and_a_token(
    classify: Classify, photos: list[Path], tmp_path: Path, start: Callable[..., ServerProcess]
) -> None:
    build_version(tmp_path / "models", "pets")
    authority = Authority(tmp_path / "authority")
    theirs, ours = authority.sign("server"), authority.sign("caller")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[tokens]]\nname = "a"\nsha256 = "{sha256(b"secret").hexdigest()}"\n')
    server = start(
        tmp_path / "models",
        *("--tokens", str(tokens), "--tls-cert", str(theirs.cert), "--tls-key", str(theirs.key)),
        *("--tls-client-ca", str(authority.ca)),
    )
    trust = ("--tls-ca", authority.ca)
    shown = (*trust, "--tls-cert", ours.cert, "--tls-key", ours.key)
    for flags, token, status, words in (
        (shown, "secret", 0, ""),
        (shown, "", 2, "wants a token"),
        (trust, "secret", 2, "error: "),
        ((), "secret", 2, "error: "),
        (("--tls",), "secret", 2, "error: "),
    ):
        done = classify(
            *("--model", "pets", photos[0], *flags), address=server.address, token=token
        )
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr
        assert done.stdout.startswith(f"{photos[0]}: ") == (status == 0)
