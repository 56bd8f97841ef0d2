# A list of files.
# {"x": ["https://h/a", "https://h/b"]} -> ["a", "b"]
# {"x": ["https://user:secret@h/a", 1]} -> refused: invalid input value: x=[…] is not a valid str

from typing import List
from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: List[Path]) -> Any:
        return [p.read_text() for p in x]
