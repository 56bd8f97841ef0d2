# The schema of a dataclass.
# schema Input.properties.x: {"title": "X", "type": "object", "properties": {"a": {"title": "A", "type": "integer"}, "b": {"title": "B", "type": "string"}}, "required": ["a"], "x-order": 0}

from dataclasses import dataclass
from typing import Any

from cog import BasePredictor


@dataclass
class Options:
    a: int
    b: str = ""


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return ""
