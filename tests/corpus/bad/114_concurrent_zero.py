# @concurrent below 1.
# raised: concurrent max must be at least 1

from cog import concurrent


@concurrent(max=0)
async def Predictor() -> str:
    return ""
