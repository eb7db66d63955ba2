"""What an adapter says if its framework is not installed."""

from __future__ import annotations


def missing_extra(extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return the error to raise in place of ``error``: with the extra to install, if its framework is not there.

    Args:
        extra: name of the extra.
        error: what the import of the framework raised.
    """
    remedy = f"coherent_cache.contrib.{extra} needs it; install the extra: pip install 'coherent-cache[{extra}]'"
    return ModuleNotFoundError(f"{error}: {remedy}", name=error.name, path=error.path)
