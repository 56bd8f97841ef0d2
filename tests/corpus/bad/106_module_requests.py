# requests is not there: Cog used to bring it.
# refused: import of requests halted; None in sys.modules
# log: Traceback

import sys

sys.modules["requests"] = None
import requests  # <- here
