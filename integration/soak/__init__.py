"""The long soak: workers that read and write under faults, an offline checker of what they saw, a report.

``python -m integration.soak --help``. The parts: ``run`` (starts and ends everything), ``fleet`` (the processes),
``worker`` and ``operations`` (what one of them does), ``faults`` (what is done to them), ``records`` (what is noted),
``checker`` (what is forbidden), ``report`` and ``plot``.
"""
