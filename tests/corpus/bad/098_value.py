# A predictor that is a value.
# refused: invalid predictor predict.Predictor

Predictor = 3
