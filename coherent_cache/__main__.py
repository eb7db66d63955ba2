"""``python -m coherent_cache``: the command line."""

import sys

from coherent_cache.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
