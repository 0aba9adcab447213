"""The operating system: what only Linux has, and what cgconvert does on other systems.

Each module here holds one thing that Linux, macOS and Windows do differently, and chooses by what
Python has, not by the name of the system. No other module of the package may use those functions;
a test holds that.
"""
