# concurrency.max of cog.yaml.
# cog.yaml: predict: predict.py:Predictor
# cog.yaml: concurrency:
# cog.yaml:   max: 3
# slots: 4 -> ready 3
# {"n": 1} -> 1

from cog import BasePredictor


class Predictor(BasePredictor):
    async def predict(self, n: int) -> int:
        return n
