"""Schemas of the custom resources that the manifests use: KEDA's and the Prometheus operator's, which no wheel has.

It must not know what the manifests say: the fields here are those that they use, written after their documentation.
"""

from __future__ import annotations

from typing import Any, Final


def strict(required: str, **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def kind(api: str, spec: dict[str, Any]) -> dict[str, Any]:
    return strict(
        "apiVersion kind metadata spec",
        apiVersion={"const": api},
        kind={"type": "string"},
        metadata=strict("name", name=TEXT, namespace=TEXT, labels={"type": "object"}, annotations={"type": "object"}),
        spec=spec,
    )


def many(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT: Final = {"type": "string", "minLength": 1}
COUNT: Final = {"type": "integer", "minimum": 0}
DIGITS: Final = {"type": "string", "pattern": "^[0-9]+$"}
SELECTOR: Final = {"type": "object"}
SCALING: Final = strict(
    "",
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy={"enum": ["Max", "Min", "Disabled"]},
    policies=many(
        strict("type value periodSeconds", type={"enum": ["Pods", "Percent"]}, value=COUNT, periodSeconds=COUNT)
    ),
)
SCHEMAS: Final = {
    "ScaledObject": kind(
        "keda.sh/v1alpha1",
        strict(
            "scaleTargetRef triggers",
            scaleTargetRef=strict("name", name=TEXT, kind=TEXT, apiVersion=TEXT),
            minReplicaCount=COUNT,
            maxReplicaCount=COUNT,
            pollingInterval=COUNT,
            cooldownPeriod=COUNT,
            advanced=strict(
                "",
                scalingModifiers=strict(
                    "formula target",
                    formula=TEXT,
                    target=DIGITS,
                    activationTarget=DIGITS,
                    metricType={"enum": ["AverageValue", "Value"]},
                ),
                horizontalPodAutoscalerConfig=strict("", behavior=strict("", scaleDown=SCALING, scaleUp=SCALING)),
            ),
            triggers=many(
                strict(
                    "type name metadata authenticationRef",
                    type={"const": "redis-streams"},
                    name={"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9]*$"},  # the formula knows it by this
                    # `consumerGroup` would make it the length of the pending list, `lagCount` the lag.
                    metadata=strict("stream streamLength", stream=TEXT, streamLength=DIGITS, databaseIndex=DIGITS),
                    authenticationRef=strict("name", name=TEXT),
                )
            ),
        ),
    ),
    "TriggerAuthentication": kind(
        "keda.sh/v1alpha1",
        strict(
            "secretTargetRef",
            secretTargetRef=many(
                strict(
                    "parameter name key",
                    parameter={"enum": ["address", "username", "password", "tls", "ca"]},
                    name=TEXT,
                    key=TEXT,
                )
            ),
        ),
    ),
    "PodMonitor": kind(
        "monitoring.coreos.com/v1",
        strict(
            "selector podMetricsEndpoints",
            selector=SELECTOR,
            podMetricsEndpoints=many(strict("port", port=TEXT, interval={"type": "string", "pattern": "^[0-9]+s$"})),
        ),
    ),
    "PrometheusRule": kind(
        "monitoring.coreos.com/v1",
        strict("groups", groups=many(strict("name rules", name=TEXT, rules=many({"type": "object"})))),
    ),
}
