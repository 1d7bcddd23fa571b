"""Run by other versions of DuckDB: the rows of the queries on stdin (JSON) over the script argv[1], as JSON."""

import json
import sys

import duckdb

con = duckdb.connect()
with open(sys.argv[1], encoding="utf-8") as script:
    con.execute(script.read())
print(json.dumps([con.execute(query).fetchall() for query in json.load(sys.stdin)]))
