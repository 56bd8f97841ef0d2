# @concurrent that is no number.
# raised: concurrent max must be an integer

from cog import concurrent


@concurrent(max="2")
async def Predictor() -> str:
    return ""
