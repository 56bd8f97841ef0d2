"""A predictor that reads the file it is given."""

import os

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, file: Path) -> str:
        with open(str(file)) as f:
            return f"{os.path.basename(str(file))} {f.read()} {file}"
