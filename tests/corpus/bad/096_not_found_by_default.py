# Neither Runner nor Predictor.
# refused: predictor not found: predict.Runner or Predictor
# cog.yaml: predict: predict.py


class Other:
    pass
