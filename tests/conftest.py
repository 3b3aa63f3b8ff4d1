"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# No test is timed: a machine may be slow, or busy with the other tests.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
