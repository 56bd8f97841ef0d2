# setup() runs once.
# {} -> 1
# {} -> 1

from cog import BasePredictor

count = 0


class Predictor(BasePredictor):
    def setup(self) -> None:
        global count
        count += 1

    def predict(self) -> int:
        return count
