"""The command line ``coherent-cache``: one file per command, listed in :data:`coherent_cache.cli.main.COMMANDS`."""
