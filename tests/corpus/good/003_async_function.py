# An async function.
# predictor: answer
# {"s": "a"} -> "a?"


async def answer(s: str) -> str:
    return s + "?"
