# A Secret is masked in logs.
# {"x": "abc"} -> 3
# log: my secret is **********

from typing import Any

from cog import BasePredictor, Secret


class Predictor(BasePredictor):
    def predict(self, x: Secret) -> Any:
        print("my secret is", x)
        return len(x.get_secret_value())
