"""Cog predictions on a Celery pool, fed by Cog's Redis queue protocol."""

__version__ = "0.1.0"
