# A dataclass that says no to its file fails the prediction.
# {"x": {"image": "https://h/a"}} -> failed: invalid input value: x: not a picture

from dataclasses import dataclass
from typing import Any

from cog import BasePredictor, Path


@dataclass
class Options:
    image: Path

    def __post_init__(self):
        raise ValueError("not a picture")


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return 1
