# A default_factory that fails refuses the input.
# {} -> refused: invalid input value: x: its default cannot be made: OSError('no disk')

from typing import Any

from cog import BasePredictor, Input


def count():
    raise OSError("no disk")


class Predictor(BasePredictor):
    def predict(self, x: int = Input(default_factory=count)) -> Any:
        return x
