# The context of a request.
# {} -> {"tenant": "t1"}

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        return dict(current_scope().context)
