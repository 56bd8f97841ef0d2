# typing_extensions is not there: Cog used to bring it.
# refused: import of typing_extensions halted; None in sys.modules
# log: Traceback

import sys

sys.modules["typing_extensions"] = None
import typing_extensions  # <- here
