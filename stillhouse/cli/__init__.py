"""The command line: `main` and one file per command. Everything may be imported here; nobody
imports this room.
"""
