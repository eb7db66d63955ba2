"""Run by an interpreter that has nothing but the built package: prints what it finds as JSON."""

import json
import statistics
import subprocess
import sys
from importlib.metadata import metadata
from importlib.resources import files

from coherent_cache import CoherentCache, __version__


def import_seconds(statement):
    code = f"from time import perf_counter as now; start = now(); {statement}; print(now() - start)"
    run = [sys.executable, "-I", "-c", code]
    return statistics.median(
        float(subprocess.run(run, capture_output=True, check=True, text=True).stdout) for _ in range(5)
    )


with CoherentCache("memory://packaging", namespace="packaging") as cache:
    cache.set("key", {"n": 1})
    value = cache.get("key")

about = metadata("coherent-cache")
scripts = files("coherent_cache").joinpath("remote", "scripts")
help_text = subprocess.run(
    [sys.executable, "-m", "coherent_cache", "--help"], capture_output=True, check=True, text=True
).stdout

print(
    json.dumps(
        {
            "value": value,
            "version": __version__,
            "metadata": {name: about.get_all(name) for name in set(about)},
            "typed": files("coherent_cache").joinpath("py.typed").is_file(),
            "scripts": sum(each.name.endswith(".lua") for each in scripts.iterdir()),
            "help": help_text,
            "import": import_seconds("import coherent_cache") / import_seconds("import redis"),
        }
    )
)
