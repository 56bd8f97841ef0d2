"""What NetworkPolicies allow, as far as these manifests use them.

It must not know which pods there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final

from tests.support.manifests import Manifests

NAMESPACE: Final = "cog-celery"


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In"
        if labels.get(one["key"]) not in one["values"]:
            return False
    return True


def peer_is(peer: Mapping[str, Any], other: Mapping[str, str] | str, namespace: str) -> bool:
    """Whether a peer of a rule is this pod (by its labels and its namespace's name), or this address."""
    if "ipBlock" in peer:
        if not isinstance(other, str):
            return False
        address, block = ip_address(other), peer["ipBlock"]
        inside = [net for net in block.get("except", []) if address in ip_network(net)]
        return address in ip_network(block["cidr"]) and not inside
    if isinstance(other, str):
        return False
    there = {"kubernetes.io/metadata.name": namespace}
    same = "namespaceSelector" not in peer and namespace == NAMESPACE
    return (same or ("namespaceSelector" in peer and matches(peer["namespaceSelector"], there))) and matches(
        peer.get("podSelector", {}), other
    )


def allowed(
    objects: Manifests,
    direction: str,
    pod: Mapping[str, str],
    other: Mapping[str, str] | str,
    port: int,
    namespace: str = NAMESPACE,
) -> bool:
    """Whether the policies let `pod` talk to `other` (Egress) or be talked to by it (Ingress)."""
    rules, chosen = direction.lower(), False
    for policy in objects.kind("NetworkPolicy"):
        spec = policy["spec"]
        if direction not in spec["policyTypes"] or not matches(spec["podSelector"], pod):
            continue
        chosen = True
        for rule in spec.get(rules, []):
            peers = rule.get("to" if direction == "Egress" else "from")
            if all(one["port"] != port for one in rule.get("ports", [{"port": port}])):
                continue
            if peers is None or any(peer_is(peer, other, namespace) for peer in peers):
                return True
    return not chosen
