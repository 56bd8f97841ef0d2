# predict() of a base class.
# {"s": "x"} -> "base x"

from cog import BasePredictor


class Base(BasePredictor):
    def predict(self, s: str) -> str:
        return "base " + s


class Predictor(Base):
    pass
