# Files in a TypedDict.
# {"x": {"image": "https://h/a"}} -> "a"

from typing import TypedDict
from typing import Any

from cog import BasePredictor, Path


class Options(TypedDict):
    image: Path


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return x["image"].read_text()
