"""larql-duck: a transformer as a database that you query with SQL."""

__version__ = "0.1.0"
