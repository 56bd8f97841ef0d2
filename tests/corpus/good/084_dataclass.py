# A dataclass.
# {"x": {"text": "a", "n": "2"}} -> ["Options", {"text": "a", "n": 2, "tags": []}]
# {"x": {"n": 1}} -> refused: invalid input value: x: text: field required
# {"x": {"text": "a", "n": "b"}} -> refused: invalid input value: x: n: is not a valid int
# {"x": []} -> refused: invalid input value: x=[] is not a valid dict

from dataclasses import dataclass, field
from typing import List
from typing import Any

from cog import BasePredictor


@dataclass
class Options:
    text: str
    n: int = 1
    tags: List[str] = field(default_factory=list)


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return [type(x).__name__, x]
