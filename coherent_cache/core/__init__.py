"""The pure core: no I/O, no clock, no thread, no logging. ``now`` is always a parameter."""
