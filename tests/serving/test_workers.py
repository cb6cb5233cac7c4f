"""`serve --workers`: processes that share a port, one of which may die."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from protos.pawprint.v1 import classifier_pb2_grpc
from serving.client import Client
from serving.copying import copy_version
from serving.cores import usable_cores
from serving.errors import InvalidRequest, NotFound
from serving.repository import Repository
from serving.settings import ServerSettings
from serving.storage import open_repository
from serving.worker import ANSWERS, CAN_NOT_ANSWER
from serving.workers import PATIENCE, Plan, Worker, check_models, reserve, share_of
from tests.commands import run_python
from tests.conftest import ROOT, ServerProcess
from tests.faults.process import descriptors
from tests.object_store import BUCKET, running_store, s3_environment
from tests.photos import encode, jpeg
from tests.ports import free_port
from tests.serving.test_service import request
from tests.tiny import build_version, tiny_model
from tests.waiting import until, until_said


def workers_of(server: ServerProcess) -> set[int]:
    return children_of(server.process.pid)


def children_of(pid: int) -> set[int]:
    """Those that run their own program by now: the parent waits, in its fork, until they do, and
    would wait for ever for one that is stopped before."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children if program_of(int(child)) != program_of(pid)}


def program_of(pid: int) -> bytes:
    """With its arguments; none of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def listening(pid: int, port: int) -> bool:
    """Whether the process itself holds a listening socket of the port."""
    inodes = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    }
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(os.readlink(descriptor))
        except OSError:
            continue
    return any(f"socket:[{inode}]" in held for inode in inodes)


def state(pid: int) -> str:
    """As the kernel has it: S asleep, T stopped, Z dead ...; "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def running(pid: int) -> bool:
    return state(pid) not in ("Z", "")


@pytest.fixture
def pair(models: Path, start) -> ServerProcess:
    return start(models, "--workers", "2", "--control", "none")


@pytest.mark.parametrize(
    "cores, shares", [(1, [1, 1]), (2, [1, 1]), (3, [2, 1]), (4, [2, 2]), (5, [2, 2, 1])]
)
def test_no_core_is_left_over(cores: int, shares: list[int]) -> None:
    assert [share_of(cores, len(shares), index) for index in range(len(shares))] == shares


def test_each_worker_has_the_cores_that_are_set_and_a_metrics_port_of_its_own() -> None:
    def own(index: int, **told: int) -> dict[str, str | int]:
        settings = ServerSettings(workers=2, port_file="port", **told)  # type: ignore[arg-type]
        return Plan(arguments=[], port=7, settings=settings).own(index)

    share = share_of(usable_cores(), 2, 1)
    plain = {"workers": 1, "port": 7, "port_file": "", "metrics_host": "127.0.0.1"}
    shared = {"cores": share, "decode_threads": share, "metrics_port": 0}
    assert own(1) == plain | shared
    told = {"cores": 1, "decode_threads": 5, "metrics_port": 9000}
    assert own(1, **told) == plain | told | {"metrics_port": 9002}


def test_two_processes_share_the_port_and_end_together(pair: ServerProcess) -> None:
    workers = workers_of(pair)
    port = int(pair.address.rpartition(":")[2])
    assert len(workers) == 2 and all(listening(pid, port) for pid in workers)
    assert not listening(pair.process.pid, port)
    with Client(pair.address) as client:
        assert client.classify([jpeg()], model="pets").version == 1
    status, out, err = pair.stop()
    assert status == 0, err
    assert out == f"serving on {pair.address}: pets/1 (fp32 on cpu); 2 workers\n"
    assert not any(running(pid) for pid in workers)


def test_each_line_of_the_log_says_which_worker_wrote_it(models: Path, start) -> None:
    server: ServerProcess = start(models, "--workers", "2", "--log-format", "json")
    status, _, err = server.stop()
    lines = [json.loads(line) for line in err.splitlines()]
    assert status == 0 and {line.get("worker") for line in lines} >= {0, 1}
    text: ServerProcess = start(models, "--workers", "2")
    _, _, err = text.stop()
    written = {match[1] for match in re.finditer(r"^\S+ \S+ worker (\d) INFO ", err, re.MULTILINE)}
    assert written == {"0", "1"}


def test_a_killed_worker_is_replaced_and_clients_notice_nothing(pair: ServerProcess) -> None:
    ended = threading.Event()
    answered: list[int] = []
    failures: list[Exception] = []

    def call() -> None:
        with Client(pair.address) as client:
            while not ended.is_set():
                try:
                    answered.append(client.classify([jpeg()], model="pets").version)
                except Exception as error:
                    failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    before = workers_of(pair)
    until(lambda: len(answered) > 20)
    os.kill(min(before), signal.SIGKILL)
    until_said(pair.log, "serves again")
    port = int(pair.address.rpartition(":")[2])
    after = workers_of(pair)
    assert len(after) == 2 and min(before) not in after
    assert all(listening(pid, port) for pid in after)
    count = len(answered)
    until(lambda: len(answered) > count + 20)
    ended.set()
    for caller in callers:
        caller.join()
    assert not failures
    status, _, err = pair.stop()
    assert status == 0 and "ended with status -9; started again" in err


def test_a_worker_takes_no_connection_before_it_can_answer() -> None:
    """Those that it is dealt would be refused, where the other worker could answer."""
    pytest.importorskip("s3fs")
    port = free_port()
    flags = ["--models", "s3://bucket/models", "--workers", "2", "--port", str(port)]
    with socket.socket() as silent:  # a store that never answers: both go on loading
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.serve", *flags, "--device", "cpu"],
            cwd=ROOT,
            env=os.environ | s3_environment(silent.getsockname()[1]),
        )
        try:
            connection, _ = silent.accept()
            with connection:
                workers = children_of(process.pid)
                assert len(workers) == 2
                assert not any(listening(pid, port) for pid in workers)
        finally:
            process.kill()
            process.wait()


# Waits for a worker that hangs, or can't answer, for as many seconds alone.
IMPATIENT = "import serving.workers as w; w.PATIENCE = 6; from serving.launch import serve; serve()"
ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


def test_a_worker_that_hangs_is_replaced_and_costs_its_own_calls_alone(models: Path, start) -> None:
    flags = ["--workers", "2", "--control", "none"]
    server: ServerProcess = start(models, *flags, program=("-c", IMPATIENT))
    ended = threading.Event()
    answered = [0] * 16
    failures: dict[int, grpc.StatusCode] = {}

    def call(index: int) -> None:
        """On a connection of its own, until a call fails."""
        with grpc.insecure_channel(server.address, ALONE) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            while not ended.is_set():
                try:
                    stub.Classify(request(jpeg()), timeout=60)
                    answered[index] += 1
                except grpc.RpcError as error:
                    failures[index] = error.code()
                    return

    callers = [threading.Thread(target=call, args=(index,)) for index in range(len(answered))]
    for caller in callers:
        caller.start()
    until(lambda: min(answered) > 2)
    before = workers_of(server)
    os.kill(min(before), signal.SIGSTOP)
    at_the_stop = list(answered)
    until_said(server.log, "hangs: silent for 6 s, it is killed")
    until_said(server.log, "serves again")
    unharmed = [i for i in range(len(answered)) if answered[i] > at_the_stop[i] + 20]
    ended.set()
    for caller in callers:
        caller.join()
    assert set(failures.values()) == {grpc.StatusCode.UNAVAILABLE}
    assert unharmed and not failures.keys() & set(unharmed)
    assert len(unharmed) + len(failures) == len(answered)
    port = int(server.address.rpartition(":")[2])
    after = workers_of(server)
    assert len(after) == 2 and min(before) not in after and max(before) in after
    assert all(listening(pid, port) for pid in after)
    status, _, err = server.stop()
    assert status == 0 and err.count("hangs") == 1 and "Traceback" not in err


@pytest.mark.slow
def test_a_worker_that_hangs_before_it_serves_is_replaced(models: Path, start) -> None:
    program = "import serving.workers as w; w.FIRST_PATIENCE = 15; "
    program += "from serving.launch import serve; serve()"
    flags = ["--workers", "2", "--control", "none"]
    server: ServerProcess = start(models, *flags, program=("-c", program))
    before = workers_of(server)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(workers_of(server) - before) == 1)
    (new,) = workers_of(server) - before
    os.kill(new, signal.SIGSTOP)
    until_said(server.log, "hangs: silent for 15 s, it is killed")
    until_said(server.log, "serves again")
    assert len(workers_of(server)) == 2 and new not in workers_of(server)
    status, _, err = server.stop()
    assert status == 0 and err.count("hangs") == 1


@pytest.mark.slow
def test_workers_that_hang_while_they_load_are_not_waited_for(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    log = tmp_path / "log"
    flags = ["--models", "s3://bucket/models", "--workers", "2", "--port", "0", "--device", "cpu"]
    with socket.socket() as silent, log.open("w") as stderr:  # a store that never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, *flags],
            cwd=ROOT,
            env=os.environ | s3_environment(silent.getsockname()[1]),
            stderr=stderr,
        )
        connections = []
        try:
            for _ in range(2):  # both load
                connections.append(silent.accept()[0])
            hanging, _ = sorted(children_of(process.pid))
            os.kill(hanging, signal.SIGSTOP)
            until_said(log, "hangs: silent for 6 s, it is killed")
            until(lambda: len([pid for pid in children_of(process.pid) if running(pid)]) == 1)
            process.terminate()
            assert process.wait(30) == 0 and log.read_text().count("hangs") == 1
        finally:
            process.kill()
            process.wait()
            for connection in connections:
                connection.close()


def fails_on_white() -> onnx.ModelProto:
    """The tiny net, whose engine has an error where all of a batch is white."""
    model = tiny_model()
    nodes, constants = model.graph.node, model.graph.initializer
    for name, value in (("nothing", np.zeros(1, np.float32)), ("white", np.float32(254.5))):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
    nodes[0].output[0] = "pixels"
    for node in (
        helper.make_node("Add", ["pixels", "zero"], ["float"]),
        helper.make_node("Gather", ["nothing", "index"], ["zero"]),  # which has one element
        helper.make_node("Cast", ["all"], ["index"], to=TensorProto.INT64),
        helper.make_node("Greater", ["least", "white"], ["all"]),
        helper.make_node("ReduceMin", ["pixels"], ["least"], keepdims=0),
    ):
        nodes.insert(1, node)
    return model


def test_a_worker_that_can_not_answer_where_others_can_is_replaced(tmp_path: Path, start) -> None:
    models = tmp_path / "models"
    build_version(models, "pets", model=fails_on_white())
    flags = ["--workers", "2", "--control", "none"]
    server: ServerProcess = start(models, *flags, program=("-c", IMPATIENT))
    file = models / "pets/1/model.onnx"
    sound = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(sound[:-1])  # so that the engine can't be made anew
    before = workers_of(server)
    white = encode(Image.new("RGB", (32, 32), "white"), "PNG")
    with grpc.insecure_channel(server.address, ALONE) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        stub.Classify(request(jpeg()))
        for _ in range(3):
            with pytest.raises(grpc.RpcError):
                stub.Classify(request(white))
        until_said(server.log, "can't answer, as others can, for 6 s: it ends")
        until_said(server.log, "ended with status 0; started again")
    file.write_bytes(sound)
    until_said(server.log, "serves again")
    after = workers_of(server)
    assert len(after) == 2 and len(before & after) == 1
    status, _, err = server.stop()
    assert status == 0 and err.count("as others can") == 1


@pytest.mark.parametrize(
    ("others", "heard", "looks"),
    [
        (True, [CAN_NOT_ANSWER] * (PATIENCE - 1) + [ANSWERS] + [CAN_NOT_ANSWER] * 99, 2 * PATIENCE),
        (True, [None] * (PATIENCE - 1) + [ANSWERS] + [None] * 99, 2 * PATIENCE),
        (False, [CAN_NOT_ANSWER] * 99, 99),  # it would come back no better
        (True, [CAN_NOT_ANSWER + ANSWERS] * 99, 99),
    ],
    ids=["can't answer", "silent", "none can answer", "answers"],
)
async def test_how_many_looks_at_a_worker_in_a_row_end_it(
    monkeypatch: pytest.MonkeyPatch, *, others: bool, heard: list[bytes | None], looks: int
) -> None:
    monkeypatch.setattr("serving.workers.BEAT_S", 0)
    beats = iter(heard)

    class Heard(Worker):
        async def _said(self, *, within_s: float) -> bytes | None:
            return next(beats)

    plan = Plan(arguments=[], port=0, settings=ServerSettings(workers=2))
    worker, other = Heard(0, plan), Worker(1, plan)
    other.answers = others
    with suppress(RuntimeError):  # of an end of the beats
        await worker._watch([worker, other])
    assert len(heard) - len([*beats]) == looks


def test_workers_do_not_outlive_their_parent(pair: ServerProcess) -> None:
    workers = workers_of(pair)
    pair.process.kill()
    until(lambda: not any(running(pid) for pid in workers))


def test_where_no_process_can_be_started_it_is_tried_again(pair: ServerProcess) -> None:
    pid, before = pair.process.pid, workers_of(pair)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) - 2, limits[1]))
    os.kill(min(before), signal.SIGKILL)
    until_said(pair.log, "can't be started: [Errno 24]", times=2)
    assert len(workers_of(pair)) == 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    until(lambda: len(workers_of(pair)) == 2)
    port = int(pair.address.rpartition(":")[2])
    until(lambda: all(listening(worker, port) for worker in workers_of(pair)))
    status, _, err = pair.stop()
    assert status == 0 and "Traceback" not in err
    waits = re.findall(r"worker \d ended with status -9; started again in (\S+) s", err)
    assert waits[:3] == ["0.2", "1", "2"]


def test_a_worker_that_does_not_end_is_killed(models: Path, start) -> None:
    server = start(models, "--workers", "2", "--control", "none", "--drain-s", "0")
    workers = workers_of(server)
    os.kill(min(workers), signal.SIGSTOP)
    begin = time.monotonic()
    status, _, err = server.stop()
    assert status == 0 and "does not end within 8 s: it is killed" in err
    assert 7 < time.monotonic() - begin < 20
    assert not any(running(pid) for pid in workers)


@contextmanager
def starting(models: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A parent, in a session of its own, whose two workers are processes and no more yet."""
    flags = ["--models", str(models), "--workers", "2", "--device", "cpu", "--port", "0"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "serving.serve", *flags],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        ) as process,
    ):
        try:
            until(lambda: len(children_of(process.pid)) == 2)
            yield process
        finally:
            process.terminate()


def test_a_sighup_while_workers_start_is_theirs_once_they_serve(
    models: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with starting(models, log) as process:
        process.send_signal(signal.SIGHUP)
        until_said(log, "changed: nothing", times=2)
    assert process.returncode == 0 and log.read_text().count("changed: nothing") == 2


def test_what_a_terminal_signals_to_all_reaches_workers_by_their_parent(
    models: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with starting(models, log) as process:
        os.killpg(process.pid, signal.SIGHUP)  # would end those that have no handler yet
        until_said(log, "changed: nothing", times=2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
    said = log.read_text()
    assert said.count("changed: nothing") == 2 and "Traceback" not in said


# As a shell with job control starts it: else nothing that a terminal stops would stop.
A_JOB = "import os; os.setpgid(0, 0); from serving.launch import serve; serve()"


def test_ctrl_z_stops_all_and_they_go_on_together(models: Path, start) -> None:
    flags = ["--workers", "2", "--control", "none"]
    server: ServerProcess = start(models, *flags, program=("-c", A_JOB))
    workers = workers_of(server)
    with Client(server.address) as client:
        for _ in range(2):
            os.killpg(server.process.pid, signal.SIGTSTP)
            until(lambda: all(state(pid) == "T" for pid in (server.process.pid, *workers)))
            os.killpg(server.process.pid, signal.SIGCONT)
            assert client.classify([jpeg()], model="pets").version == 1
            until(lambda: all(state(pid) == "S" for pid in (server.process.pid, *workers)))
    os.killpg(server.process.pid, signal.SIGTSTP)
    until(lambda: state(server.process.pid) == "T")
    server.process.send_signal(signal.SIGTERM)  # as `kill %1` does, which continues it then
    status, _, err = server.stop(signal.SIGCONT)
    assert status == 0 and "ended with status" not in err
    assert not any(running(pid) for pid in workers)


def test_a_terminal_that_stops_whom_it_finds_writing_stops_no_worker(models: Path, start) -> None:
    """`stty tostop`: workers are of its background."""
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0), open(theirs, "rb", buffering=0):
        modes = termios.tcgetattr(theirs)
        modes[3] |= termios.TOSTOP
        termios.tcsetattr(theirs, termios.TCSANOW, modes)
        open_it = f"import os; os.setsid(); os.dup2(os.open({os.ttyname(theirs)!r}, os.O_RDWR), 2)"
        program = ("-c", f"{open_it}; from serving.launch import serve; serve()")
        server: ServerProcess = start(models, "--workers", "2", program=program)
        status, _, _ = server.stop()
        said = os.read(ours, 65536)
        assert status == 0 and b" worker 0 " in said and b" worker 1 " in said


def test_workers_import_what_their_parent_did(models: Path, tmp_path: Path) -> None:
    """And not what lies in the folder in which an installed `serve` is started."""
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving/__init__.py").write_text("raise SystemExit('another serving')")
    installed = "from serving.launch import serve; serve()"
    flags = ["--models", str(models), "--workers", "2", "--device", "cpu", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", installed, *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().endswith("; 2 workers\n")
        finally:
            process.terminate()
    assert process.returncode == 0


def test_a_sighup_with_what_only_the_parent_reads(models: Path, tmp_path: Path, start) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("workers = 2\ndrain_s = 2\n")
    server = start(models, "--config", str(config))
    for wrong, said in (
        ("workers = 'two'\ndrain_s = 3\n", "the configuration stays as it was: workers in"),
        ("workers = 0\ndrain_s = 3\n", "the configuration stays as it was: workers must be 1"),
    ):
        config.write_text(wrong)
        server.process.send_signal(signal.SIGHUP)
        until_said(server.log, said)
    config.write_text("workers = 3\nmax_photos = 8\ndrain_s = 2\n")
    server.process.send_signal(signal.SIGHUP)
    until_said(server.log, "only a restart changes: workers")
    until_said(server.log, "changed: max_photos", times=2)
    status, _, err = server.stop()
    assert status == 0 and "drain_s" not in err


def test_a_worker_that_is_replaced_has_the_settings_of_the_others(
    models: Path, tmp_path: Path, start
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("workers = 2\nmax_photos = 8\n")
    server = start(models, "--config", str(config))
    config.write_text("workers = 2\nmax_photos = 2\nmax_message_mib = 1\n")
    server.process.send_signal(signal.SIGHUP)
    until_said(server.log, "changed: max_photos", times=2)
    for times, wrong in enumerate(
        (
            *("max_photos = 0\n", "max_photos = 1000\nmax_queue = 2000\n", 'only = "fish"\n'),
            *('versions = "7"\n', 'versions = "alias"\n'),
        ),
        1,
    ):
        config.write_text(wrong)
        server.process.send_signal(signal.SIGHUP)
        until_said(server.log, "the configuration stays as it was: ", times)
        os.kill(min(workers_of(server)), signal.SIGKILL)  # the older: both are new at the end
        until_said(server.log, "serves again", times)
        with Client(server.address) as client:
            with pytest.raises(InvalidRequest, match="at most 2 are allowed"):
                client.classify([jpeg()] * 3, model="pets")
    config.write_text("workers = 2\nmax_photos = 3\n")
    after = len(server.log.read_text())
    server.process.send_signal(signal.SIGHUP)
    until_said(server.log, "changed: max_photos\n", times=2, after=after)
    status, _, err = server.stop()
    assert status == 0 and err.count("the configuration stays as it was") == 5


def test_versions_that_a_model_or_a_share_of_calls_has_may_be_asked_for(models: Path) -> None:
    def check(**asked: str) -> None:
        check_models(ServerSettings(models=str(models), **asked))  # type: ignore[arg-type]

    for versions in ("7", "alias"):
        with pytest.raises(NotFound, match=f"versions is {versions}, and no model has any"):
            check(versions=versions)
        check(versions=versions, canary="pets=1:0.5")
        check(versions=versions, shadow="pets=1:0.5")
    for versions in ("latest:2", "all", "1,7"):
        check(versions=versions)
    Repository(models).promote("pets", 1)
    check(versions="alias", only="pets")


@pytest.mark.slow
def test_a_model_that_a_bucket_lacks_is_no_setting_of_workers_that_are_replaced(
    models: Path, tmp_path: Path, start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    (tmp_path / "store").mkdir()
    with running_store(tmp_path / "store") as store:
        store.put_into(monkeypatch)
        monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "cache"))
        bucket = f"s3://{BUCKET}/models"
        copy_version(Repository(models), "pets", 1, open_repository(bucket))
        config = tmp_path / "serve.toml"
        config.write_text("workers = 2\n")
        server: ServerProcess = start(bucket, "--config", str(config))
        config.write_text('workers = 2\nonly = "fish"\n')
        server.process.send_signal(signal.SIGHUP)
        until_said(server.log, "no model 'fish' in s3://models/models, which `only` asks for")
        os.kill(min(workers_of(server)), signal.SIGKILL)
        until_said(server.log, "serves again")
        config.write_text("workers = 2\nmax_photos = 2\n")
        server.process.send_signal(signal.SIGHUP)
        until_said(server.log, "changed: max_photos\n", times=2)
        status, _, err = server.stop()
    assert status == 0 and "Traceback" not in err


def said_in_vain(models: Path, *flags: str) -> list[str]:
    """The lines that two workers and their parent say where they end with status 2."""
    command = [sys.executable, "-m", "serving.serve", "--models", str(models), "--workers", "2"]
    done = subprocess.run(
        [*command, "--device", "cpu", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()


def test_what_stands_against_starting_is_said_once_by_the_parent(models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = said_in_vain(models, "--port", port)
    assert said[-1].startswith(f"error: can't listen on 127.0.0.1:{port}")


def test_connections_of_before_do_not_keep_the_port() -> None:
    """Which the kernel remembers for a minute where the server has ended them."""
    with socket.socket() as before, socket.socket() as caller:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # as gRPC listens
            before.setsockopt(socket.SOL_SOCKET, option, 1)
        before.bind(("127.0.0.1", 0))
        before.listen()
        caller.connect(before.getsockname())
        before.accept()[0].close()
        assert caller.recv(1) == b""
        port = before.getsockname()[1]
    with reserve("127.0.0.1", port) as reserved:
        assert reserved.getsockname() == ("127.0.0.1", port)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--tokens", "none.toml"], "error: the tokens in none.toml can't be used"),
        (["--tls-cert", "a.pem", "--tls-key", "b.pem"], "error: the TLS files a.pem, b.pem can't"),
    ],
)
def test_files_that_can_not_be_used_are_told_of_once(
    models: Path, flags: list[str], said: str
) -> None:
    _, line = said_in_vain(models, "--port", "0", *flags)  # after that of the cores
    assert line.startswith(said)


def test_an_address_of_ipv6_can_be_called_as_it_is_told(models: Path, start) -> None:
    server = start(models, "--workers", "2", "--control", "none", "--host", "::1")
    address = f"[::1]:{server.address.rpartition(':')[2]}"
    with Client(address) as client:
        assert client.classify([jpeg()], model="pets").version == 1
    status, out, _ = server.stop()
    assert status == 0 and out.startswith(f"serving on {address}: pets/1")


def test_without_a_model_no_worker_stays(tmp_path: Path) -> None:
    flags = ["--models", str(tmp_path), "--workers", "2", "--device", "cpu", "--port", "0"]
    done = run_python("-m", "serving.serve", *flags)
    assert done.returncode == 1 and "error: no model to serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_is_killed_while_it_starts_is_told_of(models: Path, tmp_path: Path) -> None:
    """As the kernel does where memory is short."""
    log = tmp_path / "log"
    with starting(models, log) as process:
        os.kill(min(children_of(process.pid)), signal.SIGKILL)
        assert process.wait(60) == 2
    last = log.read_text().splitlines()[-1]
    assert re.fullmatch("error: worker [01] ended with status -9 before it served", last)
