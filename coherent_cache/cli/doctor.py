"""Examine a Redis and a namespace: what is wrong for a cache, and what to do about it.

Looks at version, mode, memory, replicas, buffers, time-outs, permissions, latency and clock; then writes on one
instance and reads on another, in a scratch namespace that it removes. Exits with 1 if there is a problem.

Examples:
  coherent-cache doctor --namespace shop
  coherent-cache doctor --namespace shop --user worker      as an administrator: another user's permissions
  coherent-cache doctor --namespace shop --no-self-test --json
"""

from __future__ import annotations

import argparse

from coherent_cache.cli.common import EXIT_OK, EXIT_PROBLEM, add_connection, open_cache, place_of, say, say_json
from coherent_cache.core.diagnosing import Level, as_dict, diagnose
from coherent_cache.doctor import examine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--user", metavar="NAME", help="look at the permissions of this user, by ACL DRYRUN (Redis 7)")
    parser.add_argument("--no-self-test", action="store_true", help="write nothing")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Examine it."""
    with open_cache(args) as cache:
        server = cache.server
        facts = examine(cache, place_of(args)[0], user=args.user, self_test=not args.no_self_test)
    findings = diagnose(facts)
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    if args.json:
        say_json(
            {"server": server, "problems": problems, "warnings": warnings, "findings": list(map(as_dict, findings))}
        )
    else:
        say(f"{facts.namespace} at {server}")
        for finding in findings:
            say(f"{finding.level.value:>8}  {finding.topic}: {finding.found}")
            if finding.advice:
                say(f"{'':>8}  -> {finding.advice}")
        say(f"{problems} problems, {warnings} warnings")
    return EXIT_PROBLEM if problems else EXIT_OK
