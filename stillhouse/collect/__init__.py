"""Asking a teacher: prompts from files, requests with every setting, answers into a store."""

import sys

from stillhouse import Verb

sys.modules[__name__].__class__ = Verb  # the room can be called: see stillhouse/__init__.py
