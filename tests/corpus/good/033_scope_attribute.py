# A model may use the names of the base class for its own.
# {} -> "mine"

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        self.scope = "mine"

    def predict(self) -> str:
        return self.scope
