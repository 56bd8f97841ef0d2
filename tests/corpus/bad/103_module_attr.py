# attr is not there: Cog used to bring it.
# refused: import of attr halted; None in sys.modules
# log: Traceback

import sys

sys.modules["attr"] = None
import attr  # <- here
