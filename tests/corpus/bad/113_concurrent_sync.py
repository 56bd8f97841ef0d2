# @concurrent of a predict() that is not async.
# raised: concurrent max greater than 1 requires an async function

from cog import concurrent


@concurrent(max=2)
def Predictor() -> str:
    return ""
