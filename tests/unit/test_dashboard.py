"""The dashboard in deploy/ asks for what the archive tells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from archiver import metrics

FILE = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
PANELS: list[dict[str, Any]] = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
ASKED = re.compile(r"(archiver_\w+)(?:\{([^}]*)\})?")
GIVEN_BY_PROMETHEUS = {"job", "le"}


def told() -> dict[str, set[str]]:
    """Every sample that can be told, with its labels."""
    found: dict[str, set[str]] = {}
    for one in vars(metrics).values():
        if isinstance(one, MetricWrapperBase):
            for family in one.describe():
                ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
                for end in ends.get(family.type, [""]):
                    found[family.name + end] = set(one._labelnames)
    return found


def test_the_metrics_are_those_of_the_registry() -> None:
    """What this test holds for told is what Prometheus is told."""
    known = {family.name for family in REGISTRY.collect()}
    for name in told():
        assert {name, re.sub(r"_(total|bucket|sum|count)$", "", name)} & known, name


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_for_what_there_is(panel: dict[str, Any]) -> None:
    """Metrics and labels exist, and what it shows of a label was asked for."""
    samples = told()
    for target in panel["targets"]:
        asked = ASKED.findall(target["expr"])
        assert asked
        by = {
            label.strip()
            for labels in re.findall(r"by \(([^)]*)\)", target["expr"])
            for label in labels.split(",")
        }
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= by
        for name, selected in asked:
            known = samples[name] | GIVEN_BY_PROMETHEUS
            assert by | set(re.findall(r"(\w+)=", selected)) <= known, (name, by, selected)


def test_panels_have_a_place_each() -> None:
    """None lies on another, and each has an id of its own."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_its_variable_is_asked_of_what_there_is() -> None:
    """The job that Prometheus gave the archive."""
    [job] = [one for one in DASHBOARD["templating"]["list"] if one["name"] == "job"]
    [(name, _)] = ASKED.findall(job["query"])
    assert name in told()
