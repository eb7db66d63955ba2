"""Tools for testing code that uses a cache, shipped to users."""
