# A TypedDict.
# {"x": {"a": "1"}} -> {"a": 1}
# {"x": {"a": 1, "b": 2, "more": 3}} -> {"a": 1, "b": "2", "more": 3}
# {"x": {"b": "c"}} -> refused: invalid input value: x: a: field required

from typing import TypedDict
from typing import Any

from cog import BasePredictor


class Base(TypedDict):
    a: int


class Options(Base, total=False):
    b: str


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return x
