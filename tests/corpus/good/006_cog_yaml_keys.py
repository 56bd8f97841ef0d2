# Keys of cog.yaml that nobody knows, and those of a build, are accepted.
# cog.yaml: build:
# cog.yaml:   gpu: true
# cog.yaml:   cog_runtime: true
# cog.yaml:   python_version: "3.11"
# cog.yaml: unheard_of: [1, 2]
# cog.yaml: predict: "predict.py:Predictor"
# {} -> "here"

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: str = "here") -> str:
        return x
