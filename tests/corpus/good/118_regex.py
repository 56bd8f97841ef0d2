# regex is matched from the start, and may end early.
# {"x": "abc"} -> "abc"
# {"x": "cab"} -> refused: invalid input value: x='cab' does not match regex 'ab'

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: str = Input(regex="ab")) -> Any:
        return x
