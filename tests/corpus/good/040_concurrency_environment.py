# COG_MAX_CONCURRENCY comes before cog.yaml.
# environment: COG_MAX_CONCURRENCY=5
# cog.yaml: predict: predict.py:Predictor
# cog.yaml: concurrency: {max: 2}
# slots: 9 -> ready 5
# {"n": 1} -> 1

from cog import BasePredictor


class Predictor(BasePredictor):
    async def predict(self, n: int) -> int:
        return n
