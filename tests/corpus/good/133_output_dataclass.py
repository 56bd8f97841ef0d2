# A dataclass as output.
# {} -> {"a": 1, "b": {"a": 2, "b": null}}

from dataclasses import dataclass
from typing import Any

from cog import BasePredictor


@dataclass
class Pair:
    a: int
    b: Any = None


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return Pair(1, Pair(2))
