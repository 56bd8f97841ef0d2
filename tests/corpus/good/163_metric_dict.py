# scope.metrics is like a dict.
# {} -> [["a"], 1, false] metrics {"c": 1.5}

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        metrics = current_scope().metrics
        metrics["a"] = 1
        seen = [list(metrics), metrics["a"], "b" in metrics]
        del metrics["a"]
        metrics.record("c", 1.5)
        metrics.record("d", 1)
        metrics.delete("d")
        return seen
