# uvicorn is not there: Cog used to bring it.
# refused: import of uvicorn halted; None in sys.modules
# log: Traceback

import sys

sys.modules["uvicorn"] = None
import uvicorn  # <- here
