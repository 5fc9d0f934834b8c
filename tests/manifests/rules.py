"""All rules, and the judgement of a bundle by them."""

from __future__ import annotations

import yaml

from tests.manifests import cluster_rules, kserve_rules, pod_rules
from tests.manifests.cluster import Bundle
from tests.manifests.rendering import ADAPTER, folder, render

RULES = {rule.__name__: rule for rule in (*pod_rules.RULES, *kserve_rules.RULES, *cluster_rules.RULES)}
#: Overlays that are applied beside another, and are judged together with the base.
BESIDE = {"monitoring"}


def bundle(name: str) -> Bundle:
    """The base or an overlay, ready to be judged, or to be broken first."""
    objects = render(name)
    if name in BESIDE:
        objects = [*render("base"), *objects]
    head = "".join(
        line for line in (folder(name) / "kustomization.yaml").open(encoding="utf-8") if line.startswith("#")
    )
    return Bundle(name, objects, yaml.safe_load(ADAPTER.read_text("utf-8")), head)


def judge(found: Bundle) -> list[tuple[str, str]]:
    """Every complaint as (rule, sentence)."""
    return [(name, complaint) for name, rule in RULES.items() for complaint in rule(found)]
