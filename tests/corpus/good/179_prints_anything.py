# print() never fails.
# {} -> 1
# log: no newline

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> int:
        print("\udcff caf\u00e9")
        print("no newline", end="")
        return x
