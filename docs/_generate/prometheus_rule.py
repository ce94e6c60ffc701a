"""Write `deploy/kubernetes/prometheus-rule.yaml` from `config/alerts.yml`.

python -m docs._generate.prometheus_rule
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "config" / "alerts.yml"
TARGET: Final = ROOT / "deploy" / "kubernetes" / "prometheus-rule.yaml"

_HEAD: Final = """\
# Generated from config/alerts.yml by `python -m docs._generate.prometheus_rule`; edit that file instead.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tallystream
  labels: {app.kubernetes.io/name: tallystream}
spec:
"""


def manifest(alerts: str) -> str:
    """Return a PrometheusRule manifest with the rules of an alert file, unchanged except for its full-line comments."""
    lines = [line for line in alerts.splitlines() if not line.startswith("#")]
    return _HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines)


if __name__ == "__main__":
    TARGET.write_text(manifest(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
