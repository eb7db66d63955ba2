"""Adapters for frameworks, one module or package each. Each needs the extra of its name, and imports nothing else."""
