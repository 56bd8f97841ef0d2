# The schema of a dataclass; a Secret's default is not in it.
# schema Input.properties.x: {"title": "X", "type": "object", "properties": {"a": {"title": "A", "type": "integer"}, "b": {"title": "B", "type": "string", "default": ""}, "key": {"title": "Key", "type": "string", "format": "password", "writeOnly": true, "x-cog-secret": true}}, "required": ["a"], "x-order": 0}

from dataclasses import dataclass
from typing import Any

from cog import BasePredictor, Secret


@dataclass
class Options:
    a: int
    b: str = ""
    key: Secret = Secret("hidden")


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return ""
