"""Train a student on a teacher's exchanges: targets, losses, batches, first weights, the loop.

In: a store of exchanges and the teacher's spec. Out: a Hugging Face folder and what was measured on
the way. Flow: targets.py + identity.py -> batches.py -> init.py -> loop.py (losses.py,
checkpoint.py). Does not ask the teacher for answers (collect) nor judge the student (evaluate).
"""

import sys

from stillhouse import Verb

sys.modules[__name__].__class__ = Verb  # the room can be called: see stillhouse/__init__.py
