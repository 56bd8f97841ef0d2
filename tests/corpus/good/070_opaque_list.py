# A list of what is opaque is a list all the same.
# {"x": [{"a": 1}, 2]} -> [{"a": 1}, 2]
# {"x": 5} -> refused: invalid input value: x=5 is not a valid list

from typing import Annotated, List
from typing import Any

from cog import BasePredictor, Opaque


class Predictor(BasePredictor):
    def predict(self, x: List[Annotated[dict, Opaque]]) -> Any:
        return x
