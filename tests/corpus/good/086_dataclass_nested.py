# A dataclass within a dataclass.
# {"x": {"box": {"w": "2"}}} -> 2
# {"x": {"box": {"w": null}}} -> refused: invalid input value: x: box.w: must not be null

from dataclasses import dataclass
from typing import Any

from cog import BasePredictor


@dataclass
class Box:
    w: int


@dataclass
class Options:
    box: Box


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return x.box.w
