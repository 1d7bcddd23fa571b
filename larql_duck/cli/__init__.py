"""The command line, `larql-duck`: results go to stdout, progress and remarks to stderr."""
