"""Hypothesis without deadlines: the first call compiles, and the machine may be busy."""

from hypothesis import settings

settings.register_profile("recparams", deadline=None)
settings.load_profile("recparams")
