# run() instead of predict().
# predictor: Runner
# {"s": "a"} -> "ran a"

from cog import BaseRunner


class Runner(BaseRunner):
    def run(self, s: str) -> str:
        return "ran " + s
