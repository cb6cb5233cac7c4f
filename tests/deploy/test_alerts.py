"""Alerts, judged by Prometheus' own promtool: each comes when its trouble lasts, and not before."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_monitoring import DASHBOARD, alerts

STEP_S = 15
BEGINS = 60  # minutes of health, before the trouble
LASTS = 75
WEEK_S = 7 * 24 * 3600


def series(metric: str, **labels: str) -> str:
    labels = {"namespace": "prod", "job": "pawprint-headless", "pod": "one"} | labels
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def of_version(state: str) -> str:
    return series("pawprint_model_version_state", model="pets", version="2", state=state)


def calls(code: str) -> str:
    return series("pawprint_calls_total", method="Classify", code=code)


def answered_within(seconds: str) -> str:
    return series("pawprint_call_seconds_bucket", method="Classify", le=seconds)


def of_pets(metric: str) -> str:
    return series(metric, model="pets", version="1")


# At each step, in promtool's notation: `0+100` begins at 0 and grows by 100, `_` is no sample.
HEALTH = BEGINS * 60 // STEP_S
TROUBLE = LASTS * 60 // STEP_S
READY = series("pawprint_ready")
HEALTHY = {
    READY: "1",
    series("pawprint_ready", namespace="test"): "1",
    series("pawprint_repository_last_look_timestamp_seconds"): f"0+{STEP_S}",
    series("pawprint_repository_troubles"): "0",
    series("pawprint_certificate_expiry_timestamp_seconds"): str(2 * WEEK_S),
    of_version("serving"): "1",
    series("pawprint_model_load_failures_total", model="pets"): "0",
    of_pets("pawprint_model_accuracy"): "0.9",
    of_pets("pawprint_model_calibration_error"): "0.02",
    of_pets("pawprint_top_probability_sum"): "0+17",  # of twenty photos, so 0.85
    of_pets("pawprint_top_probability_count"): "0+20",
    of_pets("pawprint_unfamiliar_photos_total"): "0+1",
    of_pets("pawprint_model_unfamiliar_share"): "0.02",
    calls("OK"): "0+100",
    answered_within("0.6"): "0+100",
    answered_within("2.5"): "0+100",
    answered_within("+Inf"): "0+100",
}
# Alert: the series that are in trouble from BEGINS on, and after how many minutes it comes.
TROUBLES: dict[str, tuple[dict[str, str], int]] = {
    "PawprintDown": ({READY: "0"}, 2),
    "PawprintRepositoryNotRead": (
        {series("pawprint_repository_last_look_timestamp_seconds"): str(BEGINS * 60)},
        10,
    ),
    "PawprintRepositoryTroubles": ({series("pawprint_repository_troubles"): "1"}, 15),
    "PawprintVersionRefused": ({of_version("refused"): "1"}, 5),
    "PawprintLoadsFail": (
        {series("pawprint_model_load_failures_total", model="pets"): "0+0.05"},  # one in 5 minutes
        10,
    ),
    "PawprintEngineRestarts": ({of_version("serving"): "_", of_version("restarting"): "1"}, 5),
    "PawprintCallsFail": ({calls("INTERNAL"): "0+20"}, 10),
    "PawprintRefusesCalls": ({calls("RESOURCE_EXHAUSTED"): "0+20"}, 10),
    "PawprintCertificateExpires": (
        {series("pawprint_certificate_expiry_timestamp_seconds"): str(WEEK_S)},
        60,
    ),
    # From 0.85 to 0 takes the mean of all to 0.83 within two minutes.
    "PawprintLessSure": ({of_pets("pawprint_top_probability_sum"): str(17 * HEALTH)}, 7),
    # From 0.05 to all takes the share of all to more than 0.07 within six minutes.
    "PawprintUnfamiliar": ({of_pets("pawprint_unfamiliar_photos_total"): f"{HEALTH}+20"}, 7),
    "PawprintSlow": ({answered_within("0.6"): str(100 * HEALTH)}, 10),
}


def ask(folder: Path, inputs: dict[str, str], expected: list[tuple[str, int, list[Any]]]) -> None:
    """promtool, with these series: what each query gives at that minute."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: apt-get install prometheus")
    rules = [{"name": "pawprint-serve", "interval": f"{STEP_S}s", "rules": alerts()}]
    (folder / "rules.json").write_text(json.dumps({"groups": rules}))
    test = {
        "interval": f"{STEP_S}s",
        "input_series": [{"series": one, "values": values} for one, values in inputs.items()],
        "promql_expr_test": [
            {"expr": query, "eval_time": f"{minute}m", "exp_samples": samples}
            for query, minute, samples in expected
        ],
    }
    whole = {"rule_files": ["rules.json"], "evaluation_interval": f"{STEP_S}s", "tests": [test]}
    (folder / "test.json").write_text(json.dumps(whole))
    command = [promtool, "test", "rules", "test.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def judge(folder: Path, inputs: dict[str, str], expected: dict[int, list[str]]) -> None:
    """Which alerts fire at each minute."""
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    fires = {
        minute: [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names]
        for minute, names in expected.items()
    }
    ask(folder, inputs, [(query, minute, samples) for minute, samples in fires.items()])


def over(values: str, steps: int) -> str:
    """`values` for so many steps: `1`, `0+100`, `_`."""
    return f"{values}x{steps}"


def healthy(steps: int) -> dict[str, str]:
    return {one: over(values, steps) for one, values in HEALTHY.items()}


def with_trouble(trouble: dict[str, str]) -> dict[str, str]:
    """HEALTHY, and after BEGINS minutes some series that go another way."""
    inputs = healthy(HEALTH + TROUBLE)
    for one, values in trouble.items():
        before = over(HEALTHY.get(one, "_"), HEALTH)
        inputs[one] = f"{before} {over(values, TROUBLE)}"
    return inputs


def test_a_healthy_server_raises_none(tmp_path: Path) -> None:
    few = {calls("RESOURCE_EXHAUSTED"): "0+4x720", calls("INTERNAL"): "0+1x720"}
    judge(tmp_path, healthy(720) | few, {minute: [] for minute in (1, 10, 60, 120, 179)})


def test_each_alert_has_its_trouble() -> None:
    assert TROUBLES.keys() == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("alert", TROUBLES)
def test_an_alert_comes_when_its_trouble_lasts(alert: str, tmp_path: Path) -> None:
    trouble, minutes = TROUBLES[alert]
    # A rate over 5 minutes needs some of them to pass the limit.
    expected = {BEGINS + minutes - 1: [], BEGINS + minutes + 6: [alert]}
    judge(tmp_path, with_trouble(trouble), expected)


def test_a_few_photos_that_it_is_not_sure_of_are_no_alert(tmp_path: Path) -> None:
    few = {
        of_pets("pawprint_top_probability_sum"): "0+0.3x720",
        of_pets("pawprint_top_probability_count"): "0+0.6x720",  # 432 in these three hours
    }
    judge(tmp_path, healthy(720) | few, {minute: [] for minute in (60, 120, 179)})


def test_a_namespace_whose_pods_are_gone_is_missed_beside_others(tmp_path: Path) -> None:
    inputs = healthy(HEALTH + TROUBLE) | {READY: f"{over('1', HEALTH)} stale"}
    judge(tmp_path, inputs, {BEGINS + 1: [], BEGINS + 4: ["PawprintDown"]})


def test_servers_that_were_never_there_are_missed(tmp_path: Path) -> None:
    judge(tmp_path, {}, {1: [], 4: ["PawprintDown"], 90: ["PawprintDown"]})


def test_where_no_call_fails_the_dashboard_says_so(tmp_path: Path) -> None:
    (panel,) = (panel for panel in DASHBOARD["panels"] if panel["title"] == "Failed calls")
    query = panel["targets"][0]["expr"].replace("$__rate_interval", "5m")
    query = query.replace("$namespace", "prod")
    elsewhere = series("pawprint_calls_total", namespace="test", code="INTERNAL")
    healthy_here = healthy(HEALTH) | {elsewhere: f"0+1x{HEALTH}"}
    ask(tmp_path, healthy_here, [(query, 30, [{"labels": "{}", "value": 0}])])
    failing = healthy(HEALTH) | {calls("OK"): f"0+3x{HEALTH}", calls("INTERNAL"): f"0+1x{HEALTH}"}
    ask(tmp_path, failing, [(query, 30, [{"labels": "{}", "value": 0.25}])])
