# A dict of files.
# {"x": {"k": "https://h/a"}} -> {"k": "a"}
# {"x": {"k": "nowhere"}} -> refused: invalid input value: x: k: is no URL of scheme data, http or https

from typing import Dict
from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: Dict[str, Path]) -> Any:
        return {k: p.read_text() for k, p in x.items()}
