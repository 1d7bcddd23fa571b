"""Benchmarks: each case measures larql-duck beside what a user would pick instead, both in one run."""
