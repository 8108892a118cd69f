"""What the panel tells its user."""

from __future__ import annotations

__all__ = ["LabError"]


class LabError(LookupError):
    """What was asked for cannot be had; the message says what to do."""
