"""The events table: one row for each request, with keyed hashes and sketches in the place of text.

In: nothing. Out: the schema that ingest writes and detection reads, and the words its codes stand
for. Every hash is 64 bits, keyed with the scan's secret; 0 says that there was nothing to hash, or
that the log does not record it. Nothing here reads files.
"""

from __future__ import annotations

import pyarrow as pa

__all__ = ["CAPABILITIES", "EVENTS", "SHAPES", "SKETCH_SLOTS"]

SKETCH_SLOTS = 32
"""Slots of the one-permutation MinHash of a newest turn's masked text."""

SHAPES = (
    "reasoning_elicitation", "rubric_grading", "sensitive_rewriting", "tool_use", "code",
    "data_analysis", "computer_use", "vision",
)  # fmt: skip
"""Task shapes; bit i of `shape` stands for the i-th. None set: other."""

CAPABILITIES = ("other", *SHAPES)
"""What `capability` counts in: the strongest shape of the event."""

EVENTS = pa.schema(
    [
        # who, when, what was asked for
        ("account", pa.dictionary(pa.int32(), pa.string())),
        ("organisation", pa.uint64()),  # declared organisation or team
        ("time", pa.timestamp("us", tz="UTC")),
        ("model", pa.dictionary(pa.int32(), pa.string())),
        ("request", pa.uint64()),  # request id, for duplicates
        ("session", pa.uint64()),  # session or trace id
        # sizes
        ("input_tokens", pa.int32()),  # null: not recorded
        ("output_tokens", pa.int32()),
        ("turn_bytes", pa.int32()),  # bytes of the newest turn; null: no text in the log
        ("turns", pa.int16()),  # messages before the newest turn; null: no text
        ("cost_usd", pa.float32()),  # as the log states it; null: not recorded
        # parameters
        ("temperature", pa.float32()),
        ("top_p", pa.float32()),
        ("max_tokens", pa.int32()),
        ("parameters", pa.uint64()),  # hash of all parameters as sent
        # content of the newest turn (keyed)
        ("whole", pa.uint64()),  # the exact text
        ("head", pa.uint64()),  # its first tokens, masked
        ("tail", pa.uint64()),  # its last tokens, masked
        ("skeleton", pa.uint64()),  # the masked text: numbers, quotes, code, links, long tokens out
        ("sketch", pa.list_(pa.uint32(), SKETCH_SLOTS)),  # MinHash of byte n-grams; zeros: no text
        ("system", pa.uint64()),  # system prompt
        ("tools", pa.uint64()),  # tool definitions
        ("shape", pa.uint16()),  # bits of SHAPES
        ("capability", pa.uint8()),  # index into CAPABILITIES
        # infrastructure and onboarding (keyed)
        ("address", pa.uint64()),
        ("network", pa.uint64()),  # /24 or /48 of the address
        ("user_agent", pa.uint64()),
        ("payment", pa.uint64()),
        ("device", pa.uint64()),
        ("channel", pa.uint64()),  # programme or plan the account came through
        ("signup", pa.timestamp("us", tz="UTC")),  # null: not recorded
        # where the line stands, to read it again while the logs are there
        ("file", pa.uint16()),  # index into the scan's list of files
        ("offset", pa.uint64()),  # byte offset of the line in the (uncompressed) file
    ]
)
"""One row for each request."""
