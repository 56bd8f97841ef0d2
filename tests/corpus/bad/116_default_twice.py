# default and default_factory.
# raised: Cannot specify both 'default' and 'default_factory' parameters

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, i: int = Input(default=1, default_factory=int)) -> str:
        return ""
