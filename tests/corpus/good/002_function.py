# A function.
# predictor: answer
# {"s": "a"} -> "a?"


def answer(s: str) -> str:
    return s + "?"
