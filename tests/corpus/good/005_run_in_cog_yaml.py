# run: in cog.yaml.
# cog.yaml: run: "predict.py:Mine"
# {} -> 1

from cog import BaseRunner


class Mine(BaseRunner):
    def run(self) -> int:
        return 1
