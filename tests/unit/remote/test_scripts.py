"""Requests become the commands that the Lua files expect, raw answers become replies. Real Redis: integration."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha1
from importlib.resources import files

import hiredis
import pytest
from lupa import lua51

from coherent_cache.config import Settings
from coherent_cache.core.requests import (
    MAX_KEYS_PER_SCRIPT,
    BatchRequest,
    Condition,
    DeleteRequest,
    FillRequest,
    FloorRequest,
    Lease,
    LeaseRequest,
    LeaseStatus,
    LeaveRequest,
    Left,
    Member,
    MembersReply,
    MembersRequest,
    ReadReply,
    ReadRequest,
    ReleaseRequest,
    RenewRequest,
    StoreRequest,
    TouchRequest,
    WaitRequest,
    WriteReply,
)
from coherent_cache.core.session import Receipt, Report, Response, Sync
from coherent_cache.errors import CacheUnavailable, NamespaceMismatch
from coherent_cache.keys import shard_names
from coherent_cache.remote import scripts
from coherent_cache.remote.connection import ReplyError, pack
from coherent_cache.remote.scripts import Script, Scripts
from coherent_cache.versions import EPOCH_BYTES
from coherent_cache.wire import Kind, decode_receipt, encode_message_ends

SETTINGS = Settings(namespace="shop", shards=2, log_length=500, replay_limit=50)
NAMES = shard_names("shop", 1, 3)
CONFIG = b"1/2"
ORIGIN = "host-1-abc"
MEMBER = "host-1-abc:0123456789abcdef"
EPOCH = bytes(range(EPOCH_BYTES))
LEASE = Lease(1, "a", b"token", EPOCH, 8, 0, 0.0)

ALL = {
    "READ_TAGGED": ("envelope", "read"),
    "LEASE": ("common", "envelope", "lease"),
    "FILL": ("common", "write", "envelope", "fill", "store"),
    "RELEASE": ("common", "write", "release"),
    "RENEW": ("renew",),
    "STORE": ("common", "write", "store"),
    "STORE_IF": ("common", "write", "envelope", "condition", "store"),
    "DELETE": ("common", "write", "envelope", "condition", "delete"),
    "TOUCH": ("common", "write", "envelope", "touch"),
    "FLOOR": ("common", "write", "floor"),
    "BATCH": ("common", "write", "envelope", "batch"),
    "SYNC": ("common", "sync"),
    "MEMBERS": ("members",),
    "VERSIONS": ("envelope", "versions"),
}
FOLDER = files("coherent_cache.remote") / "scripts"


@pytest.fixture
def made() -> Scripts:
    return Scripts(SETTINGS, instance_id=ORIGIN, database=3, member=MEMBER)


def commands(packed: bytes) -> list[list[bytes]]:
    """Return the commands of Redis' protocol."""
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    reader.feed(packed)
    found = []
    while (command := reader.gets()) is not Ellipsis:
        found.append(command)
    return found


def keys_and_rest(arguments: tuple) -> tuple[tuple, tuple]:
    """Split a script's arguments as Redis does."""
    count = int(arguments[0])
    return arguments[1 : count + 1], arguments[count + 1 :]


# --- the files ---


@pytest.mark.parametrize(("name", "parts"), ALL.items())
def test_a_script_is_its_files_one_after_the_other(name, parts):
    script = getattr(scripts, name)

    assert script.text.decode() == "\n".join((FOLDER / f"{part}.lua").read_text("utf-8") for part in parts)
    assert script.sha.decode() == sha1(script.text).hexdigest()


def test_every_script_and_every_file_is_used():
    defined = {name for name, value in vars(scripts).items() if isinstance(value, Script)}

    assert defined == set(ALL)
    assert {part for parts in ALL.values() for part in parts} == {
        file.name.removesuffix(".lua") for file in FOLDER.iterdir()
    }


@pytest.mark.parametrize("name", ALL)
def test_a_script_is_lua_as_redis_has_it(name):
    lua51.LuaRuntime(encoding=None).compile(getattr(scripts, name).text)


@pytest.mark.parametrize("file", sorted(file.name for file in FOLDER.iterdir()))
def test_plain_lua_and_redis_call_only(file):
    code = re.sub(r"--.*", "", (FOLDER / file).read_text("utf-8"))

    assert not re.findall(r"\b(cmsgpack|struct|cjson|bit|os|io|math\.random|require|loadstring|redis\.setresp)\b", code)
    assert set(re.findall(r"redis\.(\w+)", code)) <= {"call", "pcall", "error_reply"}


@pytest.mark.parametrize("name", ALL)
def test_every_function_and_variable_is_local(name):
    # Redis refuses globals, but only when the line is reached.
    code = re.sub(r"--.*", "", getattr(scripts, name).text.decode())

    assert not re.findall(r"^\s*function\b", code, re.MULTILINE)
    local = split(re.findall(r"\blocal ([\w, ]+?)\s*(?:=|$)", code, re.MULTILINE))
    local |= split(re.findall(r"\bfunction \w+\(([\w, ]*)\)", code))
    assigned = split(re.findall(r"^\s*(\w+(?:, \w+)*) = ", code, re.MULTILINE))
    assert assigned <= local


def split(lists: list[str]) -> set[str]:
    return {name for names in lists for name in names.split(", ")}


@pytest.mark.parametrize("name", ALL)
def test_every_key_is_declared(name):
    # A cluster, and some proxies, route by KEYS; a key made inside a script would go to another node.
    code = re.sub(r"--.*", "", getattr(scripts, name).text.decode())

    for command, argument in re.findall(r"redis\.p?call\('(\w+)'(?:, ([^,)]+))?", code):
        if command not in {"TIME", "PUBLISH"}:
            assert re.match(r"KEYS\[|key\b|unpack\(KEYS", argument), (command, argument)


# --- writes ---

ENVELOPE_PARTS = (b"prefix-a", b"content-a", b"prefix-b", b"content-b")
WRITES = {
    "store": (
        StoreRequest(1, ("a", "grün"), ENVELOPE_PARTS, 5000),
        scripts.STORE,
        [b"a", "grün".encode()],
        (Kind.SET, ("a", "grün")),
        ("", "", 5000, *ENVELOPE_PARTS),
    ),
    "store for ever": (
        StoreRequest(1, ("a",), ENVELOPE_PARTS[:2], 0),
        scripts.STORE,
        [b"a"],
        (Kind.SET, ("a",)),
        ("", "", 0, *ENVELOPE_PARTS[:2]),
    ),
    "store if version": (
        StoreRequest(1, ("a",), ENVELOPE_PARTS[:2], 5000, Condition(EPOCH, 7)),
        scripts.STORE_IF,
        [b"a"],
        (Kind.SET, ("a",)),
        (EPOCH, 7, 5000, *ENVELOPE_PARTS[:2], b""),
    ),
    "store if absent": (
        StoreRequest(1, ("a",), ENVELOPE_PARTS[:2], 5000, Condition()),
        scripts.STORE_IF,
        [b"a"],
        (Kind.SET, ("a",)),
        (b"", 0, 5000, *ENVELOPE_PARTS[:2], b""),
    ),
    "delete": (DeleteRequest(1, ("a", "b")), scripts.DELETE, [b"a", b"b"], (Kind.DELETE, ("a", "b")), ("", "", b"")),
    "delete if version": (
        DeleteRequest(1, ("a",), Condition(EPOCH, 7)),
        scripts.DELETE,
        [b"a"],
        (Kind.DELETE, ("a",)),
        (EPOCH, 7, b""),
    ),
    "touch": (TouchRequest(1, "a", 5000), scripts.TOUCH, [b"a"], (Kind.TOUCH, ("a",)), (5000, b"")),
    "batch": (
        BatchRequest(1, ("a", "b", "c"), ENVELOPE_PARTS, (5000, 0)),
        scripts.BATCH,
        [b"a", b"b", b"c"],
        (Kind.BATCH, ("a", "b", "c")),
        (2, 5000, 0, *ENVELOPE_PARTS, b""),
    ),
    "batch of deletions": (
        BatchRequest(1, ("a", "b"), (), ()),
        scripts.BATCH,
        [b"a", b"b"],
        (Kind.BATCH, ("a", "b")),
        (0, b""),
    ),
    "clear": (FloorRequest(1, Kind.CLEAR), scripts.FLOOR, None, (Kind.CLEAR, ()), ()),
    "tags": (FloorRequest(1, Kind.TAG, ("red", "ü")), scripts.FLOOR, None, (Kind.TAG, ("red", "ü")), ("red", "ü")),
    "fill": (
        FillRequest(1, ("a",), ENVELOPE_PARTS[:2], 5000, ("red", "ü"), LEASE),
        scripts.FILL,
        [b"a"],
        (Kind.SET, ("a",)),
        (EPOCH, 0, 5000, *ENVELOPE_PARTS[:2], 8, b"token", "red", "ü", b""),
    ),
    "release": (ReleaseRequest(1, ("a",), LEASE), scripts.RELEASE, [b"a"], (Kind.RELEASE, ("a",)), (b"token",)),
}


@pytest.mark.parametrize("case", WRITES)
def test_the_arguments_of_a_write(made, case):
    request, script, keys, message, arguments = WRITES[case]
    values = [NAMES.value(key) for key in keys or ()]
    if script in {scripts.DELETE, scripts.FLOOR, scripts.BATCH, scripts.RELEASE}:
        # What they delete to begin with a write that is allowed in full memory.
        values.append(NAMES.probe)

    ((_, sha, *words),) = commands(made.call(request).packed)
    found_keys, (config, channel, log_length, entropy, head, tail, *rest) = keys_and_rest(words)

    assert sha == script.sha
    assert list(found_keys) == [NAMES.clock, NAMES.log, *values]
    assert (config, channel, log_length) == (CONFIG, NAMES.channel, b"500")
    assert len(entropy) == EPOCH_BYTES
    assert (head, tail) == encode_message_ends(message[0], ORIGIN, message[1])
    assert rest == commands(pack(("", *arguments)))[0][1:]


@pytest.mark.parametrize("case", WRITES)
def test_a_write_is_sent_by_its_sha_and_if_unknown_as_text(made, case):
    request, script, *_ = WRITES[case]
    call = made.call(request)

    (by_sha,), (by_text,) = commands(call.packed), commands(call.packed_with_text())

    assert by_sha[:2] == [b"EVALSHA", script.sha]
    assert by_text[:2] == [b"EVAL", script.text]
    assert by_sha[2:] == by_text[2:]  # the same entropy too: it is one write
    assert call.replies == 1


@pytest.mark.parametrize("case", WRITES)
def test_a10_every_write_has_fresh_entropy(made, case):
    entropies = {keys_and_rest(commands(made.call(WRITES[case][0]).packed)[0][2:])[1][3] for _ in range(200)}

    assert len(entropies) == 200


def test_every_shard_has_its_own_names(made):
    first, second = (made.call(TouchRequest(shard, "a", 0)).arguments for shard in (0, 1))

    assert all(b"{shop/0}" in name for name in first[1:4])
    assert all(b"{shop/1}" in name for name in second[1:4])


def test_the_largest_write_declares_all_of_its_keys(made):
    keys = tuple(f"key{number}" for number in range(MAX_KEYS_PER_SCRIPT))

    found_keys, rest = keys_and_rest(made.call(StoreRequest(1, keys, (b"p", b"c") * len(keys), 0)).arguments)

    assert len(found_keys) == MAX_KEYS_PER_SCRIPT + 2
    assert len(rest) == 9 + 2 * MAX_KEYS_PER_SCRIPT


@pytest.mark.parametrize(
    "case", ["store if version", "store if absent", "delete", "delete if version", "touch", "batch"]
)
@pytest.mark.parametrize(("schema", "number"), [(0, b""), (3, b"\0\3"), (65_535, b"\xff\xff")])
def test_scripts_that_judge_stored_values_know_the_schema(schema, number, case):
    made = Scripts(replace(SETTINGS, schema=schema), instance_id="me", database=3)

    assert made.call(WRITES[case][0]).arguments[-1] == number


# --- what the Lua files say about their arguments agrees with the above ---


@pytest.mark.parametrize(
    ("case", "positions"),
    [
        ("store", {1: CONFIG, 2: NAMES.channel, 3: 500, 9: 5000, 10: b"prefix-a", 11: b"content-a", 13: b"content-b"}),
        ("store if version", {7: EPOCH, 8: 7}),
        ("delete if version", {7: EPOCH, 8: 7}),
        ("touch", {7: 5000}),
        ("batch", {7: 2, 8: 5000, 9: 0, 10: b"prefix-a", 11: b"content-a", 12: b"prefix-b", 14: b""}),
        ("batch of deletions", {7: 0, 8: b""}),
        ("tags", {7: "red", 8: "ü"}),
        ("fill", {7: EPOCH, 8: 0, 9: 5000, 10: b"prefix-a", 11: b"content-a", 12: 8, 13: b"token", 14: "red", 15: "ü"}),
        ("release", {7: b"token"}),
    ],
)
def test_arguments_are_where_the_files_look_for_them(made, case, positions):
    rest = keys_and_rest(commands(made.call(WRITES[case][0]).packed)[0][2:])[1]

    (words,) = commands(pack(tuple(positions.values())))
    assert [rest[number - 1] for number in positions] == words


# --- leases ---


@pytest.mark.parametrize(("version", "named"), [(0, ""), (7, 7)])
def test_the_arguments_of_a_lease(made, version, named):
    call = made.call(LeaseRequest(1, "a", (b"prefix", b"token"), 5000, version, True))
    found_keys, (config, entropy, *rest) = keys_and_rest(call.arguments)

    assert call.script is scripts.LEASE
    assert list(found_keys) == [NAMES.clock, NAMES.log, NAMES.value(b"a"), NAMES.refresh(b"a")]
    assert config == CONFIG
    assert len(entropy) == EPOCH_BYTES
    assert rest == [5000, b"prefix", b"token", named, 1, b""]


def test_the_answer_to_a_lease(made):
    call = made.call(LeaseRequest(1, "a", (b"prefix", b"token"), 5000))
    raw = [b"taken", EPOCH, b"7", b"3", b"1000", b"500000", b"", b"1500"]

    reply = call.parse([raw], "server", 12.5)

    assert (reply.status, reply.remaining) == (LeaseStatus.TAKEN, 1.5)
    assert reply.read == ReadReply(EPOCH, 7, 3, 0, 1_000_500, (None,), (), "server", 12.5)


@pytest.mark.parametrize(("version", "place"), [(0, NAMES.value(b"a")), (7, NAMES.refresh(b"a"))])
def test_a_renewal_goes_where_the_lease_lies(made, version, place):
    call = made.call(RenewRequest(1, LEASE._replace(version=version), 5000))

    assert call.script is scripts.RENEW
    assert keys_and_rest(call.arguments) == ((place,), (b"token", 5000))
    assert [call.parse([answer], "server", 0.0).held for answer in (1, 0)] == [True, False]


def test_what_a_front_does_itself_is_not_for_redis(made):
    with pytest.raises(AssertionError, match="WaitRequest is not for Redis"):
        made.call(WaitRequest(None, 0.0))


# --- answers to writes ---


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([b"ok", EPOCH, b"7"], {"applied": True}),
        ([b"ok", EPOCH, b"7", b"1", b"0"], {"applied": True, "existed": [True, False]}),
        ([b"ok", EPOCH, b"9007199254740991"], {"applied": True, "seq": 9007199254740991}),
        ([b"conflict", EPOCH, b"7", b"5"], {"current_seq": 5}),
        ([b"conflict", b"", b"0", b"0"], {"epoch": b"", "seq": 0}),
        ([b"foreign", EPOCH, b"7"], {"foreign": True}),
        ([b"absent", EPOCH, b"7"], {}),
    ],
)
def test_answers_to_writes(made, raw, expected):
    nothing = WriteReply(
        epoch=EPOCH,
        seq=7,
        applied=False,
        existed=(),
        current_seq=0,
        foreign=False,
        server="run-id",
        sent_at=1.5,
    )

    reply = made.call(TouchRequest(1, "a", 0)).parse([raw], "run-id", 1.5)

    assert list(reply.existed) == expected.pop("existed", [])
    assert reply._replace(existed=()) == nothing._replace(**expected)


@pytest.mark.parametrize(
    "raw", [None, b"OK", [], [b"ok"], [b"ok", EPOCH], [b"ok", EPOCH, b"x"], [b"conflict", EPOCH, b"7"], 5]
)
def test_another_answer_is_an_error_that_its_caller_knows(made, raw):
    with pytest.raises((TypeError, ValueError, IndexError)):
        made.call(TouchRequest(1, "a", 0)).parse([raw], "run-id", 1.5)


def test_an_error_answer_is_raised(made):
    error = ReplyError("OOM command not allowed")

    with pytest.raises(ReplyError) as caught:
        made.call(TouchRequest(1, "a", 0)).parse([error], "run-id", 1.5)
    assert caught.value is error


# --- reads ---


def test_a_read_of_one_key_is_a_transaction_with_get(made):
    call = made.call(ReadRequest(1, (b"a",)))

    assert commands(call.packed) == [
        [b"MULTI"],
        [b"HMGET", NAMES.clock, b"epoch", b"seq", b"floor", b"tag_seq", b"config"],
        [b"GET", NAMES.value(b"a")],
        [b"TIME"],
        [b"EXEC"],
    ]
    assert call.replies == 5


def test_a_read_of_several_keys_is_a_transaction_with_mget(made):
    call = made.call(ReadRequest(1, (b"a", "ü".encode())))

    found = commands(call.packed)
    assert found[2] == [b"MGET", NAMES.value(b"a"), NAMES.value("ü".encode())]
    assert len(found) == call.replies == 5


@pytest.mark.parametrize("keys", [(b"a",), (b"a", b"b")])
def test_a_read_that_judges_tags_is_a_script(made, keys):
    call = made.call(ReadRequest(1, keys, judge_tags=True))

    assert call.script is scripts.READ_TAGGED
    assert keys_and_rest(call.arguments) == ((NAMES.clock, *map(NAMES.value, keys)), (CONFIG,))


QUEUED = [b"OK", b"QUEUED", b"QUEUED", b"QUEUED"]
CLOCK = [EPOCH, b"7", b"3", b"5", CONFIG]
TIME = [b"1800000000", b"123999"]


@pytest.mark.parametrize(
    ("keys", "answer", "envelopes"),
    [
        ((b"a",), b"value", [b"value"]),
        ((b"a",), None, [None]),
        ((b"a",), b"", [b""]),
        ((b"a",), ReplyError("WRONGTYPE Operation against a key"), [b""]),
        ((b"a", b"b"), [b"value", None], [b"value", None]),
    ],
)
def test_the_answer_to_a_read(made, keys, answer, envelopes):
    reply = made.call(ReadRequest(1, keys)).parse([*QUEUED, [CLOCK, answer, TIME]], "run-id", 1.5)

    assert list(reply.envelopes) == envelopes
    assert (reply.epoch, reply.seq, reply.floor, reply.tag_seq) == (EPOCH, 7, 3, 5)
    assert (reply.now_ms, reply.server, reply.sent_at) == (1_800_000_000_123, "run-id", 1.5)
    assert list(reply.tag_floors) == []


@pytest.mark.parametrize("clock", [[None] * 5, [EPOCH, b"7", None, None, CONFIG]])
def test_what_the_clock_does_not_have_is_nothing(made, clock):
    reply = made.call(ReadRequest(1, (b"a",))).parse([*QUEUED, [clock, None, TIME]], "run-id", 1.5)

    expected = (b"", 0, 0, 0) if clock[0] is None else (EPOCH, 7, 0, 0)
    assert (reply.epoch, reply.seq, reply.floor, reply.tag_seq) == expected


def test_the_answer_to_a_read_that_judges_tags(made):
    raw = [EPOCH, b"7", b"3", *TIME, [b"value", None], [5, 0]]

    reply = made.call(ReadRequest(1, (b"a", b"b"), judge_tags=True)).parse([raw], "run-id", 1.5)

    assert (reply.epoch, reply.seq, reply.floor, reply.tag_seq) == (EPOCH, 7, 3, 0)
    assert (list(reply.envelopes), list(reply.tag_floors)) == ([b"value", None], [5, 0])
    assert reply.now_ms == 1_800_000_000_123


@pytest.mark.parametrize(
    "replies",
    [
        [ReplyError("NOPERM no MULTI"), ReplyError("NOPERM"), ReplyError("NOPERM"), b"x", ReplyError("ERR EXEC")],
        [*QUEUED, ReplyError("EXECABORT Transaction discarded because of previous errors.")],
        [*QUEUED[:2], ReplyError("NOPERM no GET"), b"QUEUED", ReplyError("EXECABORT Transaction discarded")],
    ],
)
def test_an_error_before_the_transaction_ran_is_raised(made, replies):
    with pytest.raises(ReplyError) as caught:
        made.call(ReadRequest(1, (b"a",))).parse(replies, "run-id", 1.5)

    assert caught.value is next(reply for reply in replies if isinstance(reply, ReplyError))  # the cause, not EXECABORT


def test_a_clock_of_another_type_is_told_as_redis_says_it(made):
    wrong = ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value")

    with pytest.raises(ReplyError, match="WRONGTYPE"):
        made.call(ReadRequest(1, (b"a",))).parse([*QUEUED, [wrong, None, TIME]], "run-id", 1.5)


def test_a_read_of_a_namespace_with_other_settings_is_refused(made):
    clock = [EPOCH, b"7", None, None, b"1/16"]

    with pytest.raises(ReplyError) as caught:
        made.call(ReadRequest(1, (b"a",))).parse([*QUEUED, [clock, None, TIME]], "run-id", 1.5)

    mismatch = made.error(caught.value)
    assert isinstance(mismatch, NamespaceMismatch)
    assert (mismatch.namespace, mismatch.found, mismatch.expected) == ("shop", "1/16", "1/2")


@pytest.mark.parametrize("found", [b"", b"\xff", b"rubbish with spaces"])
def test_a_config_that_is_none_is_refused_too(made, found):
    with pytest.raises(ReplyError) as caught:
        made.call(ReadRequest(1, (b"a",))).parse([*QUEUED, [[EPOCH, b"7", None, None, found], None, TIME]], "r", 1.5)

    assert isinstance(made.error(caught.value), NamespaceMismatch)


# --- sync ---


@pytest.mark.parametrize(("seq", "asked"), [(None, ""), (0, 0), (7, 7)])
@pytest.mark.parametrize("channel", [b"", b"private"])
def test_the_arguments_of_a_sync(made, seq, asked, channel):
    call = made.sync(Sync(1, b"token", seq), channel)

    keys, (config, token, entropy, position, limit, answer_on, member, bound_ms) = keys_and_rest(call.arguments)
    assert call.script is scripts.SYNC
    assert keys == (NAMES.clock, NAMES.log, NAMES.probe, NAMES.members)
    assert (member, bound_ms) == (MEMBER, 5000)
    assert (config, token, position, limit, answer_on) == (CONFIG, b"token", asked, 50, channel)
    assert len(entropy) == EPOCH_BYTES


def test_a_sync_asks_for_an_ordinary_answer_unless_told_otherwise(made):
    assert made.sync(Sync(0, b"token", None)).arguments[-3] == b""


def test_p12_a_member_says_how_long_it_serves_without_asking():
    settings = replace(SETTINGS, on_disconnect="serve_stale", stale_limit=30.0)
    made = Scripts(settings, instance_id=ORIGIN, database=3, member=MEMBER)

    assert made.sync(Sync(0, b"token", None)).arguments[-1] == 30_000


# --- acknowledged writes ---


@pytest.mark.parametrize(
    "request_",
    [
        StoreRequest(1, ("a",), (b"prefix", b"content"), 0, None, EPOCH),
        StoreRequest(1, ("a",), (b"prefix", b"content"), 0, Condition(EPOCH, 7), EPOCH),
        DeleteRequest(1, ("a",), None, EPOCH),
        FloorRequest(1, Kind.CLEAR, (), EPOCH),
        FloorRequest(1, Kind.TAG, ("red",), EPOCH),
    ],
)
def test_p12_a_write_that_is_to_be_confirmed_says_so_and_brings_its_own_random_bytes(made, request_):
    _, rest = keys_and_rest(made.call(request_).arguments)
    plain = commands(made.call(_plain(request_)).packed)[0]

    assert rest[3] == EPOCH
    kind = rest[4][2]
    assert kind & 0x40
    assert bytes((*rest[4][:2], kind & ~0x40, *rest[4][3:])) in plain


def _plain(request_):
    return request_._replace(entropy=b"") if isinstance(request_, tuple) else replace(request_, entropy=b"")


def test_p12_the_members_are_asked_for(made):
    call = made.call(MembersRequest(1))
    assert (call.script, call.arguments) == (scripts.MEMBERS, (1, NAMES.members))

    raw = [b"9000", b"", EPOCH + b"1234", b"me:1", b"5000:8999", b"you:2", b"60000:1"]
    reply = call.parse([raw], "run-id", 1.5)
    assert reply == MembersReply(EPOCH, 1234, 9000, (Member("me:1", 5000, 8999), Member("you:2", 60_000, 1)), "run-id")


def test_p12_without_a_registry_there_is_nobody(made):
    assert made.call(MembersRequest(1)).parse([[b"9000"]], "run-id", 1.5) == MembersReply(b"", 0, 9000, (), "run-id")


@pytest.mark.parametrize("raw", [None, [], [b"x"], [b"1", b"me"], [b"1", b"me", b"5"], [b"1", b"me", b"5:x"]])
def test_p12_what_is_no_registry_is_an_error(made, raw):
    with pytest.raises((TypeError, ValueError, IndexError)):
        made.call(MembersRequest(1)).parse([raw], "run-id", 1.5)


def test_p12_a_receipt_goes_to_the_writer(made):
    ((word, channel, data),) = commands(made.receipt(Receipt(1, "writer", b"12345678")).packed)

    assert (word, channel) == (b"PUBLISH", NAMES.channel + b":writer")
    assert decode_receipt(data) == (b"12345678", MEMBER)


@pytest.mark.parametrize(("count", "entered"), [(1, True), (0, False)])
def test_p12_who_ends_leaves_the_registry(made, count, entered):
    call = made.call(LeaveRequest(1))

    assert commands(call.packed) == [[b"HDEL", NAMES.members, MEMBER.encode()]]
    assert call.parse([count], "run-id", 1.5) == Left(entered)
    with pytest.raises(ReplyError):
        call.parse([ReplyError("NOPERM no")], "run-id", 1.5)


def test_the_answer_to_a_sync_belongs_to_the_subscriber(made):
    with pytest.raises(CacheUnavailable, match="belongs to who made it"):
        made.sync(Sync(1, b"token", 0)).parse([b"answer"], "run-id", 1.5)


def test_what_an_instance_tells_of_itself(made):
    first = shard_names("shop", 0, 3)

    assert commands(made.report(Report(b"data", 6000)).packed) == [
        [b"SET", first.report(MEMBER), b"data", b"PX", b"6000"]
    ]
    assert commands(made.response(Response(b"\x01\xff", b"data")).packed) == [
        [b"PUBLISH", first.answers + b"01ff", b"data"]
    ]


def test_versions_are_asked_for_by_name(made):
    call = made.versions(1, ("a", "grün"))

    assert commands(call.packed) == [
        [b"EVALSHA", scripts.VERSIONS.sha, b"3", NAMES.clock, NAMES.value(b"a"), NAMES.value("grün".encode()), CONFIG]
    ]


# --- errors ---


@pytest.mark.parametrize("text", ["CCMISMATCH 1/16", "CCMISMATCH 1/16 "])
def test_a_mismatch_says_what_was_found(made, text):
    error = made.error(ReplyError(text))

    assert isinstance(error, NamespaceMismatch)
    assert (error.namespace, error.found, error.expected) == ("shop", "1/16", "1/2")


@pytest.mark.parametrize(("config", "found"), [(b"1/16", "1/16"), (b"", ""), (b"\xff", "\ufffd")])
def test_a_clock_of_other_settings_is_a_mismatch(made, config, found):
    error = made.mismatch(config)

    assert isinstance(error, NamespaceMismatch)
    assert (error.namespace, error.found, error.expected) == ("shop", found, "1/2")


@pytest.mark.parametrize("config", [None, CONFIG])
def test_no_clock_and_a_clock_of_the_same_settings_are_no_mismatch(made, config):
    assert made.mismatch(config) is None


@pytest.mark.parametrize("text", ["", "ERR CCMISMATCH", "CCMISMATCHED 1", "WRONGTYPE x", "ERR Error running script"])
def test_other_errors_are_redis_own(made, text):
    assert made.error(ReplyError(text)) is None


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        # Redis' own words, of 6.2 and 7.0.
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        (
            "OOM command not allowed when used memory > 'maxmemory'. script: 7f923f79fe76194c868d7e1d0820de36700eb649",
            True,
        ),
        ("READONLY You can't write against a read only replica.", True),
        ("NOPERM this user has no permissions to run the 'evalsha' command", True),
        ("NOSCRIPT No matching script. Please use EVAL.", True),
        ("MISCONF Redis is configured to save RDB snapshots", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("MOVED 3999 127.0.0.1:6381", True),
        ("READONLY You can't write against a read only replica. script: abc, on @user_script:5.", False),
        ("NOPERM No permissions to access a channel script: abc, on @user_script:5.", False),
        ("ERR Error running script (call to f_abc): @user_script:5: boom", False),
        ("ERR something", False),
        ("WRONGTYPE Operation against a key script: abc", False),
        ("", False),
    ],
)
def test_p1_which_errors_prove_that_nothing_was_written(text, certain):
    assert Scripts.refused_before_any_write(ReplyError(text)) is certain


# --- what all calls have in common ---


def test_settings_reach_the_scripts():
    other = Scripts(replace(SETTINGS, shards=16, log_length=77, replay_limit=9), instance_id="me", database=0)

    assert len(other.names) == 16
    assert other.names[15] == shard_names("shop", 15, 0)
    rest = keys_and_rest(other.call(TouchRequest(15, "a", 0)).arguments)[1]
    assert rest[:3] == (b"1/16", b"cc:{shop/15}:messages:0", 77)
    assert keys_and_rest(other.sync(Sync(15, b"t", 0)).arguments)[1][4] == 9
