# A dataclass as default is copied for every call.
# {} -> [1]
# {} -> [1]

from dataclasses import dataclass
from typing import Any

from cog import BasePredictor


@dataclass
class Box:
    tags: list


class Predictor(BasePredictor):
    def predict(self, x: Box = Box([])) -> Any:
        x.tags.append(1)
        return x.tags
