# Outside a prediction a scope does nothing.
# {} -> [true, {}]

from typing import Any

from cog import BasePredictor, current_scope

current_scope().record_metric("a", 1)


class Predictor(BasePredictor):
    def setup(self) -> None:
        self.record_metric("b", 1)
        self.before = dict(current_scope().metrics)

    def predict(self) -> Any:
        return [self.scope is current_scope(), self.before]
