"""The dashboard and the manifests of monitoring, against what a running server really offers."""

import asyncio
import itertools
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.access import Tls
from serving.client import AsyncClient
from serving.settings import ENVIRONMENT, ServerSettings
from tests.certificates import Authority
from tests.conftest import ROOT, running_server
from tests.deploy.test_manifests import rendered
from tests.photos import jpeg, slow_png
from tests.ports import free_port
from tests.serving.held_model import until
from tests.serving.test_metrics import Scrape
from tests.tiny import build_version, golden_of

DASHBOARD = json.loads((ROOT / "deploy/grafana/pawprint.json").read_text())
# There only with a GPU; tests/serving/test_gpu_memory.py has them.
OF_GPUS = {"pawprint_gpu_memory_bytes": {"gpu", "kind"}}
MONITORED = ("overlays/monitored", "overlays/monitored-gpu")
OF_PROMETHEUS = {"job", "instance", "namespace", "pod"}  # labels that a scrape adds


def queries() -> list[str]:
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [v for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    return [t["expr"] for t in targets] + [v["definition"] for v in variables]


def alerts() -> list[dict[str, Any]]:
    (rules,) = (r for r in rendered(MONITORED[0]) if r["kind"] == "PrometheusRule")
    return [rule for group in rules["spec"]["groups"] for rule in group["rules"]]


def names_in(query: str) -> set[str]:
    return set(re.findall(r"\b(?:pawprint|process)_\w+", query))


def labels_in(query: str) -> set[str]:
    """Those that a query filters or groups by, or asks the values of."""
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", query)
    grouped = [name for group in re.findall(r"by \(([^)]*)\)", query) for name in group.split(",")]
    asked = re.findall(r"label_values\(.+, (\w+)\)", query)
    return {name.strip() for name in (*matched, *grouped, *asked)}


async def offered(models: Path, authority: Authority) -> dict[str, set[str]]:
    """Metric -> labels, of a server with TLS, a shadow and a refused version that was called."""
    build_version(models, "pets", familiar=True)
    build_version(models, "pets", golden=golden_of(seed=5))
    port = free_port()
    pair = authority.sign("server")
    settings = {"versions": "all", "shadow": "pets=1:1.0", "metrics_port": port}
    encrypted = {"tls_cert": str(pair.cert), "tls_key": str(pair.key)}
    async with running_server(models, **settings, **encrypted) as running:
        async with AsyncClient(running.address, tls=Tls(ca=str(authority.ca))) as client:
            await client.classify([jpeg()], model="pets")
        counts = running.server._classifier.shadowing.counts
        await until(lambda: sum(counts.values()) == 1)
        scrape = await asyncio.to_thread(Scrape, port)
    found: dict[str, set[str]] = defaultdict(set)
    for sample in scrape.samples:
        found[sample.name] |= sample.labels.keys()
    return found


async def test_every_query_asks_for_metrics_and_labels_that_are_there(
    models: Path, tmp_path: Path
) -> None:
    there = await offered(models, Authority(tmp_path / "authority")) | OF_GPUS
    for query in (alert["expr"] for alert in alerts()):
        assert names_in(query) and names_in(query) <= there.keys(), query
        known = set.union(*(there[name] for name in names_in(query))) | OF_PROMETHEUS
        assert labels_in(query) <= known, query
    asked = [(query, names_in(query)) for query in queries()]
    assert all(names for _, names in asked)
    for query, names in asked:
        assert names <= there.keys(), f"{query}: no {names - there.keys()}"
        known = set.union(*(there[name] for name in names)) | OF_PROMETHEUS
        assert labels_in(query) <= known, f"{query}: no label {labels_in(query) - known}"
    ours = {re.sub(r"_(bucket|sum|count)$", "", n) for n in there if n.startswith("pawprint_")}
    shown = {re.sub(r"_(bucket|sum|count)$", "", n) for _, names in asked for n in names}
    # Each metric is on the dashboard, but for the times at which counters were made.
    assert {name for name in ours - shown if not name.endswith("_created")} <= {
        "pawprint_calls_in_flight"
    }


def test_the_dashboard_shows_one_namespace_by_itself() -> None:
    (variable,) = (v for v in DASHBOARD["templating"]["list"] if v["name"] == "namespace")
    assert variable["allValue"] == ".*"  # where there is no such label, too
    for query in set(queries()) - {variable["definition"]}:
        asked = re.findall(r"\b(?:pawprint|process)_\w+", query)
        chosen = re.findall(r'(?:pawprint|process)_\w+\{namespace=~"\$namespace"', query)
        assert len(chosen) == len(asked) > 0, query


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    assert all(panel["title"] and panel["description"] for panel in panels)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used == variables
    for query in queries():
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query


def test_alerts_are_rules_that_prometheus_takes_and_say_what_is_wrong() -> None:
    found = alerts()
    assert len({alert["alert"] for alert in found}) == len(found) >= 7
    for alert in found:
        assert alert.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch(r"[1-9]\d*m", alert.get("for", "1m"))
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"].keys() == {"summary", "description"}
        said = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
        assert said <= labels_in(alert["expr"]), alert["alert"]
        for opening, closing in ("()", "{}", "[]"):
            assert alert["expr"].count(opening) == alert["expr"].count(closing), alert["alert"]
        states = re.findall(r'state="(\w+)"', alert["expr"])
        assert {*states} <= {"refused", "restarting"}  # of serving.version_state
        given = re.findall(r'code=~?"([\w|]+)"', alert["expr"])
        codes = {code for several in given for code in several.split("|")}
        assert codes <= {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("overlay", MONITORED)
def test_a_server_that_misses_ten_looks_is_said(overlay: str) -> None:
    (expression,) = (a["expr"] for a in alerts() if a["alert"] == "PawprintRepositoryNotRead")
    data = [r["data"] for r in rendered(overlay) if r["kind"] == "ConfigMap"]
    (given,) = (d for d in data if "PAWPRINT_CACHE" in d)
    assert float(expression.split(" > ")[1]) == 10 * float(given[f"{ENVIRONMENT}POLL_S"])


@pytest.mark.parametrize("overlay", MONITORED)
def test_prometheus_finds_the_port_that_the_server_opens(overlay: str) -> None:
    resources = {(r["kind"], r["metadata"]["name"]): r for r in rendered(overlay)}
    settings = next(
        r["data"]
        for r in resources.values()
        if r["kind"] == "ConfigMap" and "PAWPRINT_CACHE" in r["data"]
    )
    port = int(settings[f"{ENVIRONMENT}METRICS_PORT"])
    assert settings[f"{ENVIRONMENT}METRICS_HOST"] == "0.0.0.0"
    pod = resources["Deployment", "pawprint-serve"]["spec"]["template"]["spec"]
    ports = {p["name"]: p["containerPort"] for p in pod["containers"][0]["ports"]}
    assert ports["metrics"] == port
    monitor = resources["ServiceMonitor", "pawprint-serve"]["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    services: list[dict[str, Any]] = [r for r in resources.values() if r["kind"] == "Service"]
    chosen = [s for s in services if wanted <= s["metadata"]["labels"].items()]
    assert [service["metadata"]["name"] for service in chosen] == ["pawprint-headless"]
    (endpoint,) = monitor["endpoints"]
    (service_port,) = [p for p in chosen[0]["spec"]["ports"] if p["name"] == endpoint["port"]]
    assert service_port["targetPort"] == "metrics" and service_port["port"] == port
    policy = resources["NetworkPolicy", "pawprint-serve"]["spec"]["ingress"]
    assert [rule["ports"][0]["port"] for rule in policy] == ["grpc", "metrics"]
    shipped = resources["ConfigMap", "pawprint-dashboard"]
    assert json.loads(shipped["data"]["pawprint.json"]) == DASHBOARD


def followed(overlay: str) -> tuple[str, int]:
    """The metric of pods that the autoscaler follows, and how much of it one pod may have."""
    (scaler,) = (r for r in rendered(overlay) if r["kind"] == "HorizontalPodAutoscaler")
    kinds = {metric["type"]: metric for metric in scaler["spec"]["metrics"]}
    assert kinds["Resource"]["resource"]["name"] == "cpu"
    pods = kinds["Pods"]["pods"]
    return pods["metric"]["name"], int(pods["target"]["averageValue"])


@pytest.mark.parametrize("overlay", MONITORED)
def test_the_autoscaler_lets_batches_fill_and_no_call_be_refused(overlay: str) -> None:
    metric, most = followed(overlay)
    assert f"seriesQuery: '{metric}{{" in (ROOT / "docs/observability.md").read_text()
    data = [r["data"] for r in rendered(overlay) if r["kind"] == "ConfigMap"]
    (given,) = (d for d in data if "PAWPRINT_CACHE" in d)
    batch = int(given.get(f"{ENVIRONMENT}MAX_BATCH", 4))
    assert 2 * batch <= most <= ServerSettings().max_queue // 2
    assert most <= int(given[f"{ENVIRONMENT}MAX_CALLS"]) // 2


async def test_the_autoscaler_sees_photos_that_wait_for_their_decoding(models: Path) -> None:
    metric, most = followed("overlays/monitored")
    port, photo = free_port(), slow_png()
    async with running_server(models, decode_threads=1, metrics_port=port) as running:
        async with AsyncClient(running.address) as client:
            calls = [client.classify([photo], model="pets") for _ in range(2 * most)]
            answers = asyncio.gather(*calls)
            while (scrape := await asyncio.to_thread(Scrape, port)).value(metric) <= most:
                assert not answers.done()
                await asyncio.sleep(0.02)
            assert scrape.value("pawprint_queue_photos") < most
            await answers
