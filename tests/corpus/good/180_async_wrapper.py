# An async decorator around a function that is not async.
# {"n": 3} -> 4

import functools

from cog import BasePredictor


def later(function):
    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Predictor(BasePredictor):
    @later
    def predict(self, n: int) -> int:
        return n + 1
