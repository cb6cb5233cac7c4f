"""The component deploy/tls, put on the overlays, and a server with the settings that it gives."""

import asyncio
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from serving.access import Tls
from serving.probe import serving_status
from serving.settings import ENVIRONMENT
from tests.certificates import Authority
from tests.conftest import ROOT, running_server
from tests.deploy.test_manifests import SERVERS, VERSIONS, rendered
from tests.ports import free_port
from tests.serving.test_metrics import fetch


def with_tls(overlay: str, folder: Path) -> list[dict[str, Any]]:
    folder.joinpath("kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{os.path.relpath(ROOT / 'deploy' / overlay, folder.resolve())}]\n"
        f"components: [{os.path.relpath(ROOT / 'deploy/tls', folder.resolve())}]\n"
    )
    return rendered(str(folder))


@pytest.mark.parametrize("overlay", SERVERS)
async def test_the_probes_work_where_calls_are_encrypted(
    overlay: str, models: Path, tmp_path: Path
) -> None:
    resources = with_tls(overlay, tmp_path)
    (deployment,) = (r for r in resources if r["kind"] == "Deployment")
    kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)
    pod = deployment["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert {"/tls", "/tmp", "/cache"} == {mount["mountPath"] for mount in server["volumeMounts"]}
    assert {"tls", "tmp", "cache"} == {volume["name"] for volume in pod["volumes"]}
    (given,) = (
        r["data"] for r in resources if r["kind"] == "ConfigMap" and "PAWPRINT_CACHE" in r["data"]
    )

    authority, port = Authority(tmp_path), free_port()
    pair = authority.sign("tls")
    settings = {
        name: {"/tls/tls.crt": str(pair.cert), "/tls/tls.key": str(pair.key)}[
            given[ENVIRONMENT + name.upper()]
        ]
        for name in ("tls_cert", "tls_key")
    }
    async with running_server(models, metrics_port=port, **settings) as running:
        said = await asyncio.to_thread(serving_status, running.address, "", 0.3)
        assert said != "SERVING"  # what a gRPC probe of Kubernetes would see
        tls = Tls(ca=str(authority.ca))
        said = await asyncio.to_thread(serving_status, running.address, "", 5.0, tls)
        assert said == "SERVING"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert "grpc" not in server[kind]
            asked = server[kind]["httpGet"]
            assert str(asked["port"]) == given[f"{ENVIRONMENT}METRICS_PORT"]
            assert (await asyncio.to_thread(fetch, port, asked["path"]))[0] == 200
        # One that stays NOT_SERVING is started again, as it would be without TLS.
        await running.server.drain()
        asked = server["livenessProbe"]["httpGet"]
        assert (await asyncio.to_thread(fetch, port, asked["path"]))[0] == 503


@pytest.mark.parametrize("overlay", SERVERS)
def test_what_balances_in_between_is_told_that_calls_are_encrypted(
    overlay: str, tmp_path: Path
) -> None:
    services = [r for r in with_tls(overlay, tmp_path) if r["kind"] == "Service"]
    ports = [port for r in services for port in r["spec"]["ports"] if port["name"] == "grpc"]
    assert [port["appProtocol"] for port in ports] == ["https", "https"]
