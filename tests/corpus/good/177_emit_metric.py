# emit_metric() replaces, with one warning.
# {} -> 1 metrics {"a": 2}

import warnings

from cog import BasePredictor, ExperimentalFeatureWarning, emit_metric


class Predictor(BasePredictor):
    def predict(self) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            emit_metric("a", 1)
            emit_metric("a", 2)
        assert all(issubclass(warning.category, ExperimentalFeatureWarning) for warning in caught)
        return len(caught)
