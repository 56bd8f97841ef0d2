# choices of str.
# {"x": "a"} -> "a"
# {"x": "c"} -> refused: invalid input value: x='c' does not match choices ['a', 'b']

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: str = Input(choices=["a", "b"])) -> Any:
        return x
