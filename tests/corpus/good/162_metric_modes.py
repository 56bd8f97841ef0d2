# Metrics are replaced, increased and appended to.
# {} -> null metrics {"a": 2, "b": 3, "c": [1, "x"]}

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        scope = current_scope()
        scope.record_metric("a", 1)
        scope.record_metric("a", 2)
        scope.record_metric("b", 1)
        scope.record_metric("b", 2, mode="incr")
        scope.record_metric("c", 1, mode="append")
        scope.record_metric("c", "x", mode="append")
