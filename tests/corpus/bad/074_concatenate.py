# A ConcatenateIterator of numbers.
# refused: ConcatenateIterator must have str element

from cog import BasePredictor, ConcatenateIterator


class Predictor(BasePredictor):
    def predict(self) -> ConcatenateIterator[int]:  # <- here
        yield 1
