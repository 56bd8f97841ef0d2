# Files at any depth.
# {} -> {"a": [null, {"b": null}]} files {"1.txt": "1", "2.txt": "2"}

from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        for n in "12":
            with open(f"{n}.txt", "w") as file:
                file.write(n)
        return {"a": [Path("1.txt"), {"b": Path("2.txt")}]}
