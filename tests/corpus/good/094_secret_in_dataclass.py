# A Secret anywhere in an input masks all of it.
# {"x": {"key": "abc"}} -> "abc"
# {"x": "abc"} -> refused: invalid input value: x=********** is not a valid dict

from dataclasses import dataclass
from typing import Any

from cog import BasePredictor, Secret


@dataclass
class Options:
    key: Secret


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return x.key.get_secret_value()
