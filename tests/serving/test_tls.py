"""TLS and mutual TLS over real sockets; certificates renewed under a running server."""

import asyncio
import codecs
import math
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from serving.access import Tls
from serving.client import AsyncClient, Client
from serving.errors import DeadlineExceeded, InvalidRequest, Unavailable
from serving.own_tls import own_tls
from serving.pem import check_pair
from serving.probe import serving_status
from serving.settings import ServerSettings
from serving.tls import ShownCertificate, TlsFiles
from tests.certificates import Authority, Pair, PrivateKey, serial
from tests.conftest import ROOT, Running, ServerProcess, running_server
from tests.photos import jpeg
from tests.ports import free_port
from tests.serving.test_metrics import scrape

DAY_S = 24 * 3600


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def tls_settings(pair: Pair, **more: str) -> dict[str, str]:
    return {"tls_cert": str(pair.cert), "tls_key": str(pair.key), **more}


async def classify(running: Running, tls: Tls | None) -> str:
    async with AsyncClient(running.address, tls=tls, timeout_s=5) as client:
        response = await client.classify([jpeg()], model="pets")
        return response.results[0].label.name


async def test_an_encrypted_server_answers_those_who_trust_it(
    models: Path, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger", "another authority")
    async with running_server(models, **tls_settings(authority.sign("server"))) as running:
        assert await classify(running, Tls(ca=str(authority.ca))) in ("cat", "dog")
        for tls in (None, Tls(ca=str(stranger.ca))):
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await classify(running, tls)
        named = Tls(ca=str(authority.ca), server_name="localhost")
        assert await classify(running, named) in ("cat", "dog")
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await classify(running, Tls(ca=str(authority.ca), server_name="example.org"))
        both = Running(address=f"{running.address},{running.address}", server=running.server)
        assert await classify(both, named) in ("cat", "dog")
        for kind in (AsyncClient, Client):
            with pytest.raises(InvalidRequest, match="need the name that the certificate of each"):
                kind(both.address, tls=Tls(ca=str(authority.ca)))


async def test_mutual_tls_wants_a_certificate_of_the_authority(
    models: Path, authority: Authority, tmp_path: Path
) -> None:
    callers = Authority(tmp_path / "callers", "authority of the callers")
    stranger = Authority(tmp_path / "stranger", "another authority")
    settings = tls_settings(authority.sign("server"), tls_client_ca=str(callers.ca))
    good, bad = callers.sign("shop"), stranger.sign("shop")
    async with running_server(models, **settings) as running:
        ca = str(authority.ca)
        shown = Tls(ca=ca, cert=str(good.cert), key=str(good.key))
        assert await classify(running, shown) in ("cat", "dog")
        assert await asyncio.to_thread(serving_status, running.address, "", 5.0, shown) == "SERVING"
        for tls in (Tls(ca=ca), Tls(ca=ca, cert=str(bad.cert), key=str(bad.key))):
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await classify(running, tls)


async def test_files_may_begin_with_the_mark_that_some_editors_put_there(
    models: Path, authority: Authority
) -> None:
    pair = authority.sign("server")
    for file in (pair.cert, pair.key, authority.ca):
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    settings = tls_settings(pair, tls_client_ca=str(authority.ca))
    shown = Tls(ca=str(authority.ca), cert=str(pair.cert), key=str(pair.key))
    async with running_server(models, **settings) as running:
        assert await classify(running, shown) in ("cat", "dog")


async def test_a_key_that_grpc_takes_is_not_too_short_for_us(
    models: Path, authority: Authority
) -> None:
    """OpenSSL, which looks at the files first, refuses RSA of 1024 bits unless told otherwise."""
    pair = authority.sign("old", key=rsa.generate_private_key(65537, 1024))
    settings = tls_settings(pair, tls_client_ca=str(authority.ca))
    async with running_server(models, **settings) as running:
        shown = Tls(ca=str(authority.ca), cert=str(pair.cert), key=str(pair.key))
        assert await classify(running, shown) in ("cat", "dog")


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP521R1()), ed25519.Ed25519PrivateKey.generate()]
)
async def test_a_renewed_key_of_a_kind_that_our_clients_refuse_is_not_taken(
    models: Path,
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: PrivateKey,
) -> None:
    """A server that has no other shows it all the same: other clients take such a key."""
    odd, live = authority.sign("odd", key=key), copied(authority.sign("first"), tmp_path)
    tls = Tls(ca=str(authority.ca))
    async with running_server(models, **tls_settings(live)) as running:
        _replace(odd.cert, live.cert)
        _replace(odd.key, live.key)
        assert await classify(running, tls) in ("cat", "dog")
    (message,) = (text for text in caplog.messages if "certificate" in text)
    assert message.startswith(
        f"the certificate stays as it was: the certificate in {live.cert} has"
    )
    caplog.clear()
    async with running_server(models, **tls_settings(live)) as running:
        shown = await asyncio.to_thread(shown_serial, running.address)  # by OpenSSL
        assert shown == serial(odd.cert.read_bytes())
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await classify(running, tls)
    (message,) = (text for text in caplog.messages if "certificate" in text)
    assert message.endswith("; gRPC takes RSA, P-256 and P-384: callers refuse it")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256R1(), ec.SECP224R1(), ec.SECP256K1()])
async def test_a_curve_is_taken_or_refused_at_the_start(
    models: Path, authority: Authority, curve: ec.EllipticCurve
) -> None:
    """gRPC says of those that it can't use that the port can't be had."""
    pair = authority.sign("server", key=ec.generate_private_key(curve))
    settings = tls_settings(pair, tls_client_ca=str(authority.ca))
    shown = Tls(ca=str(authority.ca), cert=str(pair.cert), key=str(pair.key))
    if curve.key_size >= 256 and curve.name != "secp256k1":
        async with running_server(models, **settings) as running:
            assert await classify(running, shown) in ("cat", "dog")
        return
    words = re.escape(f"{pair.key} holds a key of another kind; gRPC takes RSA, P-256 and P-384")
    with pytest.raises(InvalidRequest, match=words):
        async with running_server(models, **settings):
            pass
    with pytest.raises(InvalidRequest, match=words):
        Client("localhost:1", tls=shown)


async def test_a_renewed_authority_of_the_callers_is_taken_without_a_restart(
    models: Path, authority: Authority, tmp_path: Path
) -> None:
    callers = [Authority(tmp_path / name, f"authority {name}") for name in ("old", "new")]
    live = tmp_path / "callers.pem"
    shutil.copy(callers[0].ca, live)
    settings = tls_settings(authority.sign("server"), tls_client_ca=str(live))
    pairs = [caller.sign("shop") for caller in callers]
    old, new = (Tls(ca=str(authority.ca), cert=str(pair.cert), key=str(pair.key)) for pair in pairs)
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(caller.ca.read_bytes() for caller in callers))
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(both.read_bytes()[:-100])
    async with running_server(models, **settings) as running:
        for there, taken, refused in (
            (callers[0].ca, [old], [new]),
            (both, [old, new], []),
            (callers[1].ca, [new], [old]),
            (damaged, [new], [old]),  # the last good one stays
        ):
            _replace(there, live)
            for tls in taken:
                assert await classify(running, tls) in ("cat", "dog")
            for tls in refused:
                with pytest.raises((Unavailable, DeadlineExceeded)):
                    await classify(running, tls)


def shown_serial(address: str) -> int:
    """Of the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    return serial(ssl.get_server_certificate((host, int(port))).encode())


async def test_a_renewed_certificate_is_shown_without_a_restart(
    models: Path, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serving.tls")
    first, second = authority.sign("first"), authority.sign("second")
    live = copied(first, tmp_path)
    async with running_server(models, **tls_settings(live)) as running:
        tls = Tls(ca=str(authority.ca))
        async with AsyncClient(running.address, tls=tls) as old:
            await old.classify([jpeg()], model="pets")
            before = await asyncio.to_thread(shown_serial, running.address)
            assert before == serial(first.cert.read_bytes())
            _replace(second.cert, live.cert)  # the key does not fit yet
            assert await asyncio.to_thread(shown_serial, running.address) == before
            assert await asyncio.to_thread(shown_serial, running.address) == before
            assert caplog.text.count("the certificate stays as it was") == 1
            _replace(second.key, live.key)
            after = await asyncio.to_thread(shown_serial, running.address)
            assert after == serial(second.cert.read_bytes())
            await old.classify([jpeg()], model="pets")  # an open connection lives on
        assert await classify(running, tls) in ("cat", "dog")
        assert caplog.messages.count("the certificate was read again") == 1
        os.remove(live.key)
        assert await asyncio.to_thread(shown_serial, running.address) == after


async def test_a_renewed_certificate_that_is_not_valid_now_is_not_taken(
    models: Path, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, expired = authority.sign("good"), authority.sign("old", days=(-9, -8))
    early = authority.sign("new", days=(8, 9))
    live = copied(good, tmp_path)
    async with running_server(models, **tls_settings(live)) as running:
        for pair, words in ((expired, "expired at "), (early, "is not valid before ")):
            caplog.clear()
            _replace(pair.cert, live.cert)
            _replace(pair.key, live.key)
            for _ in range(2):
                shown = await asyncio.to_thread(shown_serial, running.address)
                assert shown == serial(good.cert.read_bytes())
            (message,) = caplog.messages
            stays = f"the certificate stays as it was: the certificate in {live.cert} {words}"
            assert message.startswith(stays)


async def test_a_certificate_that_expires_is_said_once_and_replaced_by_any(
    models: Path, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    early = authority.sign("new", days=(8, 9))
    live = copied(authority.sign("short", days=(-1, 2 / 86_400)), tmp_path)
    async with running_server(models, **tls_settings(live)) as running:
        async with asyncio.timeout(30):
            while "expired at" not in caplog.text:
                await asyncio.to_thread(shown_serial, running.address)
        await asyncio.to_thread(shown_serial, running.address)
        (message,) = (text for text in caplog.messages if "certificate" in text)
        assert message.endswith("+00:00: callers refuse it")
        _replace(early.cert, live.cert)
        _replace(early.key, live.key)
        shown = await asyncio.to_thread(shown_serial, running.address)
        assert shown == serial(early.cert.read_bytes())  # it may be our clock that is wrong


async def test_metrics_say_when_the_certificate_expires(
    models: Path, authority: Authority, tmp_path: Path
) -> None:
    soon, later = authority.sign("soon", days=(-1, 2)), authority.sign("later", days=(-1, 30))
    live, port = copied(soon, tmp_path), free_port()
    name = "pawprint_certificate_expiry_timestamp_seconds"
    async with running_server(models, metrics_port=port, **tls_settings(live)) as running:
        found = await scrape(port)
        assert found.value(name) == pytest.approx(time.time() + 2 * DAY_S, abs=60)
        _replace(later.cert, live.cert)  # the key does not fit yet
        found = await scrape(port)
        assert found.value(name) == pytest.approx(time.time() + 2 * DAY_S, abs=60)
        _replace(later.key, live.key)
        found = await scrape(port)  # with no new connection in between
        assert found.value(name) == pytest.approx(time.time() + 30 * DAY_S, abs=60)
        shown = await asyncio.to_thread(shown_serial, running.address)
        assert shown == serial(later.cert.read_bytes())
        later_still = await asyncio.to_thread(shown_serial, running.address)
        assert later_still == shown


@pytest.mark.parametrize(
    ("days", "words"), [((-9, -8), "expired at "), ((8, 9), "is not valid before ")]
)
def test_a_certificate_that_is_not_valid_at_the_start_is_said(
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    days: tuple[float, float],
    words: str,
) -> None:
    pair = authority.sign("server", days=days)
    ShownCertificate(TlsFiles(cert=pair.cert, key=pair.key, client_ca=None))
    (message,) = caplog.messages
    assert message.startswith(f"the certificate in {pair.cert} {words}")
    assert message.endswith("+00:00: callers refuse it")


def test_a_python_that_cannot_read_its_dates_serves_a_certificate(
    models: Path, authority: Authority, start: Callable[..., ServerProcess]
) -> None:
    code = "import ssl; del ssl._ssl._test_decode_cert; import serving.serve as s; s.main()"
    pair, port = authority.sign("server"), free_port()
    flags = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--metrics-port", str(port))
    server = start(models, *flags, program=("-c", code))
    with Client(server.address, tls=Tls(ca=str(authority.ca))) as client:
        client.classify([jpeg()], model="pets")
    found = asyncio.run(scrape(port))
    assert found.value("pawprint_certificate_expiry_timestamp_seconds") == math.inf
    status, _, err = server.stop()
    assert status == 0 and "can't tell when a certificate expires" in err


@pytest.mark.parametrize("mutual", [False, True])
async def test_the_probe_of_a_container_reaches_its_own_server(
    models: Path, authority: Authority, tmp_path: Path, mutual: bool
) -> None:
    """Whatever the name and the authority of its certificate; asked by the environment alone."""
    stranger = Authority(tmp_path / "stranger", "another authority")
    pair = authority.sign("server", names=("*.pets.example",))
    client_ca = {"tls_client_ca": str(authority.ca)} if mutual else {}
    settings = tls_settings(pair, **client_ca)
    other = stranger.sign("other", names=("*.pets.example",))
    async with running_server(models, **settings) as running:
        port = running.address.rpartition(":")[2]
        here = {f"PAWPRINT_SERVE_{k.upper()}": v for k, v in {"port": port, **settings}.items()}
        assert await probe(here) == (0, "SERVING\n")
        wrong = {**here, "PAWPRINT_SERVE_TLS_CERT": str(other.cert)}
        assert (await probe({**wrong, "PAWPRINT_SERVE_TLS_KEY": str(other.key)}))[0] == 1
        assert (await probe({"PAWPRINT_SERVE_PORT": port}))[0] == 1


@pytest.mark.parametrize("names", [None, ("fd00::1",), ("fd00::1", "pets.example"), ("PETS",)])
async def test_a_probe_finds_a_name_that_grpc_takes_for_one_of_the_certificate(
    models: Path, authority: Authority, names: Sequence[str] | None
) -> None:
    settings = tls_settings(authority.sign("server", names))
    here = {f"PAWPRINT_SERVE_{name.upper()}": value for name, value in settings.items()}
    async with running_server(models, **settings) as running:
        tls = await asyncio.to_thread(own_tls, running.address, here, 5.0)
        assert await asyncio.to_thread(serving_status, running.address, "", 5.0, tls) == "SERVING"


def test_a_probe_speaks_tls_and_shows_a_certificate_where_its_server_does(
    authority: Authority,
) -> None:
    pair, address = authority.sign("server"), f"127.0.0.1:{free_port()}"  # where nobody is
    cert, key, client_ca = (
        {f"PAWPRINT_SERVE_TLS_{name}": str(file)}
        for name, file in (("CERT", pair.cert), ("KEY", pair.key), ("CLIENT_CA", authority.ca))
    )
    for half in ({}, cert, key):
        assert own_tls(address, half | client_ca, 1) is None
    assert own_tls(address, cert | key, 1) == Tls(ca=str(pair.cert))
    mutual = Tls(ca=str(pair.cert), cert=str(pair.cert), key=str(pair.key))
    assert own_tls(address, cert | key | client_ca, 1) == mutual


async def probe(environment: dict[str, str]) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving.probe"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode()


def copied(pair: Pair, folder: Path) -> Pair:
    live = Pair(cert=folder / "live.pem", key=folder / "live.key")
    shutil.copy(pair.cert, live.cert)
    shutil.copy(pair.key, live.key)
    return live


def _replace(source: Path, target: Path) -> None:
    part = target.with_suffix(".part")
    shutil.copy(source, part)
    os.replace(part, target)


def test_files_that_do_not_fit_are_refused_at_the_start(
    authority: Authority, tmp_path: Path
) -> None:
    one, other = authority.sign("one"), authority.sign("other")
    longer = authority.sign("longer", key=rsa.generate_private_key(65537, 2048))
    missing, junk, cut, locked = (tmp_path / name for name in ("missing", "junk", "cut", "locked"))
    pipe, revoked, trusted = (tmp_path / name for name in ("pipe", "revoked", "trusted"))
    os.mkfifo(pipe)
    revoked.write_bytes(authority.revoke_none())
    trusted.write_bytes(one.cert.read_bytes().replace(b" CERTIFICATE-", b" TRUSTED CERTIFICATE-"))
    junk.write_text("junk")
    cut.write_bytes(one.cert.read_bytes() + other.cert.read_bytes()[:200])
    key = serialization.load_pem_private_key(one.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for cert, key, client_ca, reason in (
        (one.cert, other.key, None, f"{other.key} is not the key of {one.cert}"),
        (one.cert, longer.key, None, f"{longer.key} is not the key of {one.cert}"),
        (one.cert, missing, None, f"{missing}: No such file or directory"),
        (one.cert, tmp_path, None, f"{tmp_path}: Is a directory"),
        (pipe, one.key, None, f"{pipe}: it is a pipe, and not a file"),
        (junk, one.key, None, f"{junk} holds no certificate in PEM"),
        (trusted, one.key, None, f"{trusted}: it is of the form TRUSTED CERTIFICATE"),
        (cut, one.key, None, f"{cut} holds no certificate in PEM, or not the whole of it"),
        (one.cert, one.cert, None, f"{one.cert} holds no key in PEM"),
        (one.cert, locked, None, f"{locked} holds no key in PEM, or one with a passphrase"),
        (one.cert, one.key, junk, f"{junk} holds no certificate in PEM"),
        (one.cert, one.key, cut, f"{cut} holds no certificate in PEM"),
        (one.cert, one.key, revoked, f"{revoked} holds no certificate in PEM"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            ShownCertificate(TlsFiles(cert=cert, key=key, client_ca=client_ca))
        said, _, why = str(raised.value).partition(" can't be used: ")
        assert said.startswith("the TLS files ") and why.startswith(reason)


def test_files_that_change_while_they_are_read_are_not_taken(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, renewed = copied(authority.sign("one"), tmp_path), authority.sign("other")

    def check_and_renew(cert: Path, key: Path) -> None:
        check_pair(cert, key)
        _replace(renewed.cert, live.cert)

    monkeypatch.setattr("serving.tls.check_pair", check_and_renew)
    with pytest.raises(InvalidRequest, match="changed while they were read"):
        ShownCertificate(TlsFiles(cert=live.cert, key=live.key, client_ca=None))


def test_half_of_the_settings_is_refused(authority: Authority) -> None:
    with pytest.raises(InvalidRequest, match="tls_cert and tls_key must be given together"):
        ServerSettings(tls_cert="cert.pem")
    with pytest.raises(InvalidRequest, match="tls_client_ca needs"):
        ServerSettings(tls_client_ca="ca.pem")
    with pytest.raises(InvalidRequest, match="a client's certificate needs its key"):
        Tls(cert="cert.pem")
    with pytest.raises(InvalidRequest, match="nowhere.pem can't be read"):
        Client("localhost:1", tls=Tls(ca="nowhere.pem"))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_file_of_a_client_that_holds_something_else_is_told(
    kind: type, authority: Authority, tmp_path: Path
) -> None:
    """And not a server that does not answer."""
    junk, own, other = tmp_path / "junk", authority.sign("own"), authority.sign("other")
    junk.write_text("junk")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidRequest, match="pipe can't be read: it is a pipe"):
        kind("localhost:1", tls=Tls(ca=str(pipe)))
    with pytest.raises(InvalidRequest, match="junk holds no certificate in PEM"):
        kind("localhost:1", tls=Tls(ca=str(junk)))
    for cert, key in ((own.cert, other.key), (junk, own.key), (own.cert, junk)):
        with pytest.raises(InvalidRequest, match=f"{cert} and {key} are no certificate and its"):
            kind("localhost:1", tls=Tls(cert=str(cert), key=str(key)))
    own.cert.write_bytes(own.cert.read_bytes().replace(b" CERTIFICATE-", b" TRUSTED CERTIFICATE-"))
    with pytest.raises(InvalidRequest, match="it is of the form TRUSTED CERTIFICATE"):
        kind("localhost:1", tls=Tls(cert=str(own.cert), key=str(own.key)))


async def test_the_commands_take_certificates(
    models: Path, authority: Authority, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg())
    async with running_server(models, **tls_settings(authority.sign("server"))) as running:
        for command in (
            ["serving.probe", "--address", running.address],
            ["serving.classify", "--address", running.address, str(photo)],
        ):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command, "--tls-ca", str(authority.ca)),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(process.communicate(), 60)
            assert (process.returncode, err) == (0, b"") and out
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command), cwd=ROOT, stderr=subprocess.PIPE
            )
            _, err = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 1
            assert err.decode().endswith("; if the server speaks TLS: --tls or --tls-ca FILE\n")
