"""Facts written as files that other tools read: RDF, GraphML, Neo4j's CSV, CSV and Parquet."""
