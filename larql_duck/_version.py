"""The version of larql-duck."""

__version__ = "0.1.0"
