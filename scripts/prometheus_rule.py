"""Writes the PrometheusRule of the Kubernetes manifests from the rules that every Prometheus can read.

It must not know what a rule says: they are taken over word for word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

DEPLOY: Final = Path(__file__).parents[1] / "deploy"
RULES: Final = DEPLOY / "monitoring" / "rules.yaml"
MANIFEST: Final = DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD: Final = """\
# Made from deploy/monitoring/rules.yaml by `make rules`: change that file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: cog-celery
  labels: {app.kubernetes.io/name: cog-celery}
spec:
"""


def manifest(rules: str) -> str:
    """The manifest with the text of a rule file under `spec`, its comments of the first lines left out."""
    lines = rules[rules.index("groups:") :].splitlines()
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines)


if __name__ == "__main__":
    MANIFEST.write_text(manifest(RULES.read_text()))
