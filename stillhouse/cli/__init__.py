"""The command line: `main` and one file per command. Everything may be imported here; nobody
imports this room.
"""

import os

# Pydantic would read every installed package's metadata for plugins: a tenth of `--help`.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
