# A Path is a file.
# {} -> null files {"out.txt": "made"}

from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Path:
        with open("out.txt", "w") as file:
            file.write("made")
        return Path("out.txt")
