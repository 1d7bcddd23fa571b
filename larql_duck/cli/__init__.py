"""The command line."""

from larql_duck.cli.app import main

__all__ = ["main"]
