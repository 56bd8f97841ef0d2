# Threads of a prediction share its scope.
# {} -> null metrics {"a": 1}

import threading
from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        thread = threading.Thread(target=lambda: current_scope().record_metric("a", 1))
        thread.start()
        thread.join()
