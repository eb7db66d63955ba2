"""Write ``questions-v1.json``: reports, questions and answers of release 1, byte by byte. Refuses to overwrite it."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any

from coherent_cache.core.questions import (
    Answer,
    HeldEntry,
    Holdings,
    InstanceReport,
    Question,
    ShardFacts,
    encode_answer,
    encode_question,
    encode_report,
    holdings_body,
)
from coherent_cache.keys import shard_names

TARGET = Path(__file__).with_name("questions-v1.json")

ID = bytes(range(8))
REPORTS = [
    InstanceReport(member="a:00ff", instance="a"),
    InstanceReport(
        member="host-12-9f:0123456789abcdef", instance="host-12-9f", version="1.2.3", host="grün", pid=12,
        started=1_800_000_000.5, uptime=61.25, state="coherent", horizon_age=0.5, bound=5.0, interval=2.0, entries=3,
        bytes=1500, hits=2**40, misses=7, redis_hits=5, loads=2, invalidations=11, applied=4, resyncs=1, flushes=0,
        errors=6, propagation_p50=0.001, propagation_p99=0.25, options={"shards": 1, "ttl": None, "policy": "lru"},
    ),
]  # fmt: skip
QUESTIONS = [
    Question(ID, "status"),
    Question(ID, "versions", ("a:00ff",), ("key", "grün", "\0")),
    Question(ID, "sample", most=1000),
    Question(ID, "explain", (), ("key",)),
    Question(ID, "what a newer release asks"),
]
EPOCH = bytes(range(0xA0, 0xB0))
SHARD = ShardFacts(3, "suspect", True, EPOCH, 2**53, 1.5, "run-id", 5.0)
ANSWERS = [
    Answer(ID, "a:00ff", "unknown", []),
    Answer(ID, "a:00ff", "versions", holdings_body(Holdings({}, (), True))),
    Answer(
        ID,
        "a:00ff",
        "sample",
        holdings_body(
            Holdings(
                {3: SHARD, 0: SHARD._replace(shard=0, state="connecting", serves=False, epoch=b"", horizon_age=inf)},
                (HeldEntry("key", 3, 7, 299.5), HeldEntry("grün", 3, 8, inf)),
                False,
            )
        ),
    ),
]


def report_record(report: InstanceReport) -> dict[str, Any]:
    values = {each.name: getattr(report, each.name) for each in fields(report) if each.name != "horizon_age"}
    age = None if report.horizon_age == inf else report.horizon_age
    return {"fields": values, "horizon_age": age, "hex": encode_report(report).hex()}


def build() -> dict[str, Any]:
    """Return the whole file."""
    names = shard_names("shop", 0, 3)
    return {
        "reports": [report_record(each) for each in REPORTS],
        "questions": [
            {"id": each.id.hex(), "kind": each.kind, "to": each.to, "keys": each.keys, "most": each.most,
             "hex": encode_question(each).hex()}
            for each in QUESTIONS
        ],
        "answers": [
            {"id": each.id.hex(), "member": each.member, "kind": each.kind, "hex": encode_answer(each).hex()}
            for each in ANSWERS
        ],
        "names": {
            "questions": names.questions.decode(),
            "answer": names.answer(ID).decode(),
            "report": names.report("a:00ff").decode(),
        },
    }  # fmt: skip


def main() -> int:
    """Write the file, unless it is there."""
    if TARGET.exists():
        print(f"{TARGET} exists and is never written again: other releases rely on it", file=sys.stderr)
        return 1
    with TARGET.open("x", encoding="utf-8") as file:
        json.dump(build(), file, indent=1, ensure_ascii=True)
        file.write("\n")
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
