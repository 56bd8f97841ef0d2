# predict that is no function.
# refused: predict is not a function

from cog import BasePredictor


class Predictor(BasePredictor):  # <- here
    predict = 3
