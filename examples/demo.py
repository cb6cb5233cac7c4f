"""The whole way in one go: photos, a trained version, a server, answers over gRPC. `make demo`.

Without --data the photos are cartoons that the project draws itself, and the net is trained from
nothing; with your own folder of photos a net that knows ImageNet is taught your classes.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from serving.client import Client
from serving.repository import Repository
from trainer.cartoons import SPECIES, write_cartoons

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CARTOONS_A_CLASS = 300
SHOWN = 12
START_LIMIT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of photos, a folder for each class")
    parser.add_argument("--weights", default="imagenet", help="imagenet, none, or a file")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    options = parser.parse_args()
    console = Console(markup=False, emoji=False)  # what is printed holds names of files

    if options.data is None:
        data = ROOT / "data" / "cartoon"
        if len(list(data.glob("*/*.jpg"))) != CARTOONS_A_CLASS * len(SPECIES):
            console.print(f"Drawing {CARTOONS_A_CLASS} cats and as many dogs in {data}")
            write_cartoons(data, per_class=CARTOONS_A_CLASS)
        chosen = ["--backbone", "tiny", "--weights", "none"]
    else:
        data = options.data
        chosen = ["--backbone", "mobilenet_v2", "--weights", options.weights]

    command = [BIN / "train", "--data", data, "--out", options.models, "--json", *chosen]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(1)  # train has said why
    published = json.loads(done.stdout)
    repository = Repository(options.models)
    classify_held_out(repository, published["name"], published["version"], data, console)


def classify_held_out(
    repository: Repository, name: str, version: int, data: Path, console: Console
) -> None:
    """Start a server, ask it about pictures that the training never saw, and stop it again."""
    manifest = repository.manifest(name, version)
    split = json.loads(repository.read_file(manifest, "split.json"))
    tests = [(label, data / file) for label, files in split["test"].items() for file in files]
    shown = tests[:: max(1, len(tests) // SHOWN)][:SHOWN]
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        server = subprocess.Popen(
            [BIN / "serve", "--models", repository.root, "--port", "0", "--port-file", port_file],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while not port_file.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit("error: the server did not start")
                time.sleep(0.05)
            with Client(f"localhost:{port_file.read_text().strip()}") as client:
                client.get_model(name)  # connects, so that the first photo does not pay for it
                console.print(answers(client, name, version, shown))
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait()
    if status != 0:
        sys.exit(f"error: the server ended with status {status}")
    metrics = manifest.variants["fp32"].metrics
    console.print(
        f"{name}/{version}: accuracy {metrics.accuracy:.3f} on {metrics.photos} test photos. "
        f"The server has stopped cleanly.\n"
        f"Next: .venv/bin/analyze {name}/{version} --data {shlex.quote(str(data))} --budget quick",
        soft_wrap=True,  # a command is pasted
    )


def answers(client: Client, name: str, version: int, shown: list[tuple[str, Path]]) -> Table:
    table = Table("photo", "is", "answer", "probability", "ms")
    for label, path in shown:
        start = time.perf_counter()
        best = client.classify([path], model=name, version=str(version)).results[0].labels[0]
        elapsed = 1e3 * (time.perf_counter() - start)
        style = "" if best.name == label else "red"
        table.add_row(
            path.name, label, best.name, f"{best.probability:.3f}", f"{elapsed:.1f}", style=style
        )
    return table


if __name__ == "__main__":
    main()
