"""The operating system: what Linux has alone, and what cgconvert does where it is missing.

Each module here holds one thing that Linux, macOS and Windows do differently, and chooses by what
Python has, not by the name of the system. No other module of the package may use those functions;
a test holds that.
"""
