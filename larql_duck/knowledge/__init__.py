"""The relation packs that ship with larql_duck: YAML and CSV files (README.md describes the format)."""
