# fastapi is not there: Cog used to bring it.
# refused: import of fastapi halted; None in sys.modules
# log: Traceback

import sys

sys.modules["fastapi"] = None
import fastapi  # <- here
