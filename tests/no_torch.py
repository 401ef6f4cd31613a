"""What a script of a test begins with so that whoever imports torch or transformers fails."""

__all__ = ["NO_TORCH"]

NO_TORCH = """\
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers'):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""
