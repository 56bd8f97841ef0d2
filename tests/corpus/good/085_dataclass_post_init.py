# A dataclass that says no.
# {"x": {"n": -1}} -> refused: invalid input value: x: n must not be negative
# {"x": {"n": 1}} -> 1

from dataclasses import dataclass
from typing import Any

from cog import BasePredictor


@dataclass(frozen=True)
class Options:
    n: int

    def __post_init__(self):
        if self.n < 0:
            raise ValueError("n must not be negative")


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return x.n
