"""The dashboard and the alert rules ask for what /metrics has, and every alert says where to read on."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from openlora.node.telemetry import snapshot as shown
from openlora.node.telemetry.metrics import metrics
from tests.node.telemetry.test_metrics import NOW_S, some_state
from tests.node.test_faq import section

SELECTED = re.compile(r"\b(openlora_[a-z0-9_]+|vllm:[a-z0-9_]+|up)\b(?:\{([^}]*)\})?")
OF_EVERY_TARGET = {"job", "instance"}  # Prometheus's own labels
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")


@pytest.fixture
async def samples(tmp_path: Path) -> list[Sample]:
    """Of a page that lacks nothing. Nothing was skipped in this scene, and so has no label."""
    state = await some_state(tmp_path)
    gpu = shown.Gpu(**{field.name: _any(field) for field in msgspec.structs.fields(shown.Gpu)})
    machine = msgspec.structs.replace(state.machine, gpus=(gpu,))
    queue = msgspec.structs.replace(state.queue, skipped_jobs={"low_gas": 1})
    page = metrics(msgspec.structs.replace(state, machine=machine, queue=queue), NOW_S)
    return [sample for family in text_string_to_metric_families(page.decode()) for sample in family.samples]


@pytest.fixture
def served(samples: list[Sample]) -> dict[str, set[str]]:
    """The names on the page, each with its labels."""
    found: dict[str, set[str]] = {"up": set()}
    for sample in samples:
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _any(field: msgspec.structs.FieldInfo) -> object:
    return "x" if field.type is str else 1


def check(expression: str, served: dict[str, set[str]]) -> None:
    """Every name is on the page, and has each label that is selected or summed by."""
    selected = SELECTED.findall(expression)
    assert selected, expression
    labels = {label for _, body in selected for label in re.findall(r"(\w+)\s*[=!]~?", body)}
    for grouped in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        labels |= set(re.findall(r"\w+", grouped))
    for name, _ in selected:
        assert name in served, f"{name} of {expression} is not on the page"
        assert labels - OF_EVERY_TARGET <= served[name], f"{expression}: {name} has the labels {served[name]}"


def test_every_panel_asks_for_what_is_served(repository: Path, served: dict[str, set[str]]):
    dashboard = json.loads((repository / "configs/grafana/openlora.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    asked: set[str] = set()
    for panel in panels:
        for target in panel["targets"]:
            check(target["expr"], served)
            names = {name for name, _ in SELECTED.findall(target["expr"])}
            told = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert told <= OF_EVERY_TARGET.union(*(served[name] for name in names)), target["legendFormat"]
            asked |= names
    assert served.keys() - asked <= {"vllm:lora_requests_info"}, "shown by no panel; that one is for routers"


def test_panels_do_not_overlap(repository: Path):
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((repository / "configs/grafana/openlora.json").read_text())["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_alert_asks_for_what_is_served_and_has_its_entry_in_the_faq(
    repository: Path, served: dict[str, set[str]]
):
    entries = section((repository / "configs/guides/faq.md").read_text(), "Alerts")
    (group,) = yaml.safe_load((repository / "configs/grafana/alerts.yml").read_text())["groups"]
    runbooks = []
    for rule in group["rules"]:
        check(rule["expr"], served)
        assert re.fullmatch(r"OpenLora[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {str(severity) for severity in shown.Severity}
        assert rule["annotations"]["summary"]
        runbooks.append(rule["annotations"]["runbook"])
    assert set(runbooks) == entries
    assert {str(code) for code in shown.AlertCode} <= set(runbooks), "each of the node's own alerts has a rule"
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])


@needs_promtool
def test_prometheus_evaluates_every_alert_as_it_is_meant(repository: Path):
    cases = repository / "tests/node/telemetry/alerts.test.yml"
    (group,) = yaml.safe_load((repository / "configs/grafana/alerts.yml").read_text())["groups"]
    (test,) = yaml.safe_load(cases.read_text())["tests"]
    assert [case["alertname"] for case in test["alert_rule_test"]] == [rule["alert"] for rule in group["rules"]]
    assert all(case["exp_alerts"] for case in test["alert_rule_test"]), "each fires for somebody, and not for all"
    promtool("test", "rules", cases)
    promtool("check", "config", repository / "configs/grafana/prometheus.yml")


@needs_promtool
def test_prometheus_finds_data_for_every_panel(repository: Path, samples: list[Sample], tmp_path: Path):
    """Each expression, over ten minutes of a page that stays as it is."""
    target = {"job": "openlora", "instance": "127.0.0.1:9464"}
    series = [(sample.name, sample.labels, sample.value) for sample in samples] + [("up", {}, 1)]
    written = [
        {
            "series": f"{name}{{{', '.join(f'{k}={json.dumps(v)}' for k, v in (labels | target).items())}}}",
            "values": f"{value}x10",
        }
        for name, labels, value in series
    ]
    dashboard = json.loads((repository / "configs/grafana/openlora.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    there = [
        {
            "expr": f"count({expression.replace('$job', 'openlora').replace('$node', '.*')}) > bool 0",
            "eval_time": "10m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for expression in asked
    ]
    (tmp_path / "panels.yml").write_text(
        json.dumps({"tests": [{"interval": "1m", "input_series": written, "promql_expr_test": there}]})
    )
    promtool("test", "rules", tmp_path / "panels.yml")


def promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
