# No such predictor.
# refused: predictor not found: predict.Predictor


class Other:
    pass
