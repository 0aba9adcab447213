"""One page of text that every model of the family can predict: English, and then Python.

It is part of the package, so it is the same with every version of Python. It was written for this
purpose and quotes no training text. Its names return, as those of real code do: a model whose
attention works predicts them from the lines before.
"""

from __future__ import annotations

__all__ = ["PAGE"]

PAGE = '''"""Read the settings of a program from a file.

The file has a name and a value in each line, separated by an equals sign. Empty lines and
lines that begin with a number sign are ignored. If the file does not exist, the default
values are used.
"""

import os


class Settings:
    """The settings of a program, by name."""

    def __init__(self, path):
        self.path = path
        self.values = {}

    def read(self):
        """Read the file and return the number of values."""
        if not os.path.exists(self.path):
            return 0
        with open(self.path) as file:
            for line in file:
                line = line.strip()
                if not line or line.startswith("#"):
                    continue
                name, value = line.split("=", 1)
                self.values[name.strip()] = value.strip()
        return len(self.values)

    def get(self, name, default=None):
        """Return the value of a name, or the default value."""
        return self.values.get(name, default)
'''
