# A default need not be among the choices.
# {} -> ""
# {"x": "a"} -> "a"
# {"x": ""} -> refused: invalid input value: x='' does not match choices ['a', 'b']

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: str = Input(default="", choices=["a", "b"])) -> Any:
        return x
