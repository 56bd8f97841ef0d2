# An Iterator of nothing.
# refused: iterator type must have a type argument

from typing import Iterator

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self) -> Iterator:  # <- here
        yield ""
