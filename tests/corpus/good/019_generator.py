# A generator.
# {"n": 3} -> yields [0, 1, 2]
# {"n": 0} -> yields []

from typing import Iterator

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, n: int) -> Iterator[int]:
        for i in range(n):
            yield i
