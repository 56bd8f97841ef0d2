# The choices of an input that is named like another part of the document.
# schema Input.properties.Input: {"allOf": [{"$ref": "#/components/schemas/InputChoices"}], "x-order": 0, "default": "a"}
# schema InputChoices: {"title": "Input", "description": "An enumeration.", "enum": ["a", "b"], "type": "string"}

from typing import Literal

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, Input: Literal["a", "b"] = "a") -> str:
        return Input
