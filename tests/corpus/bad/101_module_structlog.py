# structlog is not there: Cog used to bring it.
# refused: import of structlog halted; None in sys.modules
# log: Traceback

import sys

sys.modules["structlog"] = None
import structlog  # <- here
