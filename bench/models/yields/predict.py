"""Yields many small outputs with a line of logs each, as fast as it can: a chatty language model at its worst."""

from collections.abc import Iterator

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, count: int) -> Iterator[str]:
        for number in range(count):
            print(f"line {number}")
            yield f"token {number}"
