from __future__ import annotations

import pytest

from coherent_cache.cli import main as cli


@pytest.fixture
def run(capsys):
    """Run a command line; give exit code, standard output and standard error."""

    def run(*argv):
        try:
            code = cli.main(argv)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
