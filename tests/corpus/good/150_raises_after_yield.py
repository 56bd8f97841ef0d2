# What was yielded before an exception was sent.
# {} -> failed: late
# log: ValueError: late

from typing import Iterator
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Iterator[int]:
        yield 1
        raise ValueError("late")
