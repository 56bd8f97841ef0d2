# Without a name Runner comes before Predictor.
# cog.yaml: predict: predict.py
# {} -> "runner"

from cog import BasePredictor, BaseRunner


class Predictor(BasePredictor):
    def predict(self) -> str:
        return "predictor"


class Runner(BaseRunner):
    def run(self) -> str:
        return "runner"
