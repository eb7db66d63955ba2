"""Asks Redis and all instances about one key (see core/explaining.py)."""

from __future__ import annotations

from typing import Final

from coherent_cache.core.explaining import LOG_SHOWN, Explanation, KeyOnInstance, describe_message, explain_instance
from coherent_cache.core.questions import Ask
from coherent_cache.keys import check_key, shard_of
from coherent_cache.remote.inquiry import Inquiry
from coherent_cache.wire import WireError

ANSWER_SECONDS: Final = 1.0
"""Seconds that instances have to answer."""

LOG_LOOKED_AT: Final = 2_000
"""Latest messages of the shard's log that are searched for the key."""


def explain(inquiry: Inquiry, key: str, *, namespace: str, server: str, shards: int) -> Explanation:
    """Find out all that is known of a key.

    Args:
        inquiry: asks.
        key: user key.
        namespace: the namespace.
        server: where Redis is, for people.
        shards: how many shards the namespace has.

    Raises:
        InvalidKey: before anything is sent.
        CacheUnavailable: Redis is away or refused.
    """
    shard = shard_of(check_key(key), shards)
    reporting = inquiry.fleet().reports
    answers = inquiry.ask(Ask.EXPLAIN, timeout=ANSWER_SECONDS, keys=(key,)).answers
    # After the answers, as an audit does: what an instance holds is then no newer than what Redis has.
    (snapshot,) = inquiry.versions(shard, (key,))
    instances: list[KeyOnInstance] = []
    for answer in answers:
        for told in answer.body[:1] if answer.kind == Ask.EXPLAIN else ():
            try:
                instances.append(explain_instance(answer.member, told, snapshot.found[0], snapshot))
            except WireError:
                continue
    instances.sort(key=lambda each: each.member)
    latest = inquiry.log(shard, down_to=max(0, snapshot.seq - LOG_LOOKED_AT), most=2 * LOG_LOOKED_AT)
    log = [describe_message(each, key, snapshot.time_us) for each in latest]
    known = {each.member for each in instances}
    return Explanation(
        namespace=namespace,
        server=server,
        key=key,
        shard=shard,
        snapshot=snapshot,
        refresh=inquiry.refresh_lease(shard, key),
        log=tuple([each for each in log if each is not None][:LOG_SHOWN]),
        instances=tuple(instances),
        unanswered=tuple(sorted(set(reporting) - known)),
    )
