"""Asking models: one protocol, four kinds (scripted, llamacpp, local, endpoint), named by specs.

In: a spec and requests. Out: exchanges, log-probabilities, logits. `open_model` is the door;
`base.py` has the protocol, each engine its own file, `weights.py` the files they need.
"""

from __future__ import annotations

from stillhouse.models.asking import explicit
from stillhouse.models.base import Capabilities, Failure, Model, Need, Scored, require
from stillhouse.models.specs import open_model, parse_spec

__all__ = [
    "Capabilities",
    "Failure",
    "Model",
    "Need",
    "Scored",
    "explicit",
    "open_model",
    "parse_spec",
    "require",
]
