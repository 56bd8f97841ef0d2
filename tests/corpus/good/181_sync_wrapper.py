# A decorator that runs an async function to its end.
# {"n": 3} -> 4
# {"n": 4} -> 5

import asyncio
import functools

from cog import BasePredictor


def at_once(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return asyncio.run(function(*args, **kwargs))

    return wrapper


class Predictor(BasePredictor):
    @at_once
    async def predict(self, n: int) -> int:
        await asyncio.sleep(0)
        return n + 1
