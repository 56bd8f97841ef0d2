# @streaming, with and without brackets.
# {"n": 2} -> yields [0, 1]

from typing import Iterator

from cog import BasePredictor, streaming


class Predictor(BasePredictor):
    @streaming
    def predict(self, n: int) -> Iterator[int]:
        yield from range(n)

    @streaming()
    def other(self):
        yield 1
