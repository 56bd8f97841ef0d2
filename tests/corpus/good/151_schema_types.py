# The schema of plain types.
# schema Input.properties.x_y: {"type": "integer", "title": "X Y", "x-order": 0}
# schema Input.properties.f: {"type": "number", "title": "F", "x-order": 1}
# schema Input.properties.b: {"type": "boolean", "title": "B", "x-order": 2, "default": false}
# schema Input.properties.a: {"title": "A", "x-order": 3}
# schema Input.required: ["x_y", "f", "a"]
# schema Output: {"title": "Output", "type": "string"}

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x_y: int, f: float, b: bool = False, a: Any = Input()) -> str:
        return ""
