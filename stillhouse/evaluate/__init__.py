"""How close a student came: distances, calibration, speed, and who it says it is."""

import sys

from stillhouse import Verb

sys.modules[__name__].__class__ = Verb  # the room can be called: see stillhouse/__init__.py
