# A metric so deep that nobody could read it.
# {} -> ["ok", "ok", "ValueError"] metrics {"a": [[[]], [[]]]}

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self) -> list:
        return [self.record(1), self.record(1), self.record(200)]

    def record(self, levels):
        value = []
        for _ in range(levels):
            value = [value]
        try:
            current_scope().record_metric("a", value, "append")
        except Exception as error:
            return type(error).__name__
        return "ok"
