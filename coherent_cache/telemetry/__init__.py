"""Metrics and traces for tools that collect them: optional, nothing here is imported by the cache itself."""
