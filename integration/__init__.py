"""Integration tests: a real Redis, several processes, faults."""
