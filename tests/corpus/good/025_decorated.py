# Decorated methods are inspected through their decorators.
# {"n": "3"} -> 9

import contextlib
import functools

from cog import BasePredictor


@contextlib.contextmanager
def inference_mode():
    yield


def twice(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Predictor(BasePredictor):
    @twice
    @inference_mode()
    def predict(self, n: int) -> int:
        return n * n
