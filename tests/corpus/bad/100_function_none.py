# A function that returns nothing.
# refused: predict() must not return None


def Predictor(s: str) -> None:  # <- here
    pass
