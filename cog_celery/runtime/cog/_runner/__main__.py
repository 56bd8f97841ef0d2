"""Starts the runner: `python -u …/cog/_runner/__main__.py <read fd> <write fd> <worker pid>`.

It must not let the model's folder be seen before all that the runner needs has been imported.
"""

from __future__ import annotations

# A child that multiprocessing spawns imports this file too, under another name.
if __name__ == "__main__":
    import os
    import sys

    here = os.path.dirname(os.path.abspath(__file__))
    runtime = os.path.dirname(os.path.dirname(here))
    hidden = {here, runtime, os.getcwd()}
    sys.path[:] = [runtime, *(path for path in sys.path if path and os.path.abspath(path) not in hidden)]

    from cog._runner.main import main

    main(sys.argv[1:])
