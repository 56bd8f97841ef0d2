"""`python -m cog_celery`: the same as the command `cog-celery`. It must not hold anything else."""

from __future__ import annotations

from cog_celery.cli.main import main

if __name__ == "__main__":
    main()
