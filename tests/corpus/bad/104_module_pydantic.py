# pydantic is not there: Cog used to bring it.
# refused: import of pydantic halted; None in sys.modules
# log: Traceback

import sys

sys.modules["pydantic"] = None
import pydantic  # <- here
