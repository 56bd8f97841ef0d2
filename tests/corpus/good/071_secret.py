# Secret.
# {"x": "abc"} -> ["**********", "**********", "abc"]
# {"x": ["abc"]} -> refused: invalid input value: x=********** is not a valid str

from typing import Any

from cog import BasePredictor, Secret


class Predictor(BasePredictor):
    def predict(self, x: Secret) -> Any:
        return [str(x), repr(x), x.get_secret_value()]
