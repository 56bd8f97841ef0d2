# The schema of limits.
# schema Input.properties.n: {"type": "integer", "title": "N", "x-order": 0, "description": "how many", "minimum": 1, "maximum": 9, "default": 3}
# schema Input.properties.s: {"type": "string", "title": "S", "x-order": 1, "minLength": 1, "maxLength": 5, "pattern": "a.*", "deprecated": true}

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        n: int = Input(default=3, description="how many", ge=1, le=9),
        s: str = Input(min_length=1, max_length=5, regex="a.*", deprecated=True),
    ) -> Any:
        return ""
