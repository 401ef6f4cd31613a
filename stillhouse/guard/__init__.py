"""Guard: which accounts, together, extract a model.

In: a provider's own logs. Out: an events table of keyed hashes and sketches. Nothing here asks a
model, and no text of a log is kept.
"""
