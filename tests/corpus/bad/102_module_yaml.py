# yaml is not there: Cog used to bring it.
# refused: import of yaml halted; None in sys.modules
# log: Traceback

import sys

sys.modules["yaml"] = None
import yaml  # <- here
