# A default that does not match.
# refused: default='foo' not a regex match for input: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(default="foo", regex="[0-9]+"),  # <- here
    ) -> str:
        return ""
