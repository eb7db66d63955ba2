"""Keys from arguments: equal arguments, and only they, give one text; what has no stable text is refused by name."""

from __future__ import annotations

import datetime as dt
import enum
import inspect
import math
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest

from coherent_cache.argument_keys import LONGEST_TEXT, MAX_DEPTH, Arguments, CallKey, Template
from coherent_cache.errors import ConfigError, InvalidKey, UnstableArgument
from coherent_cache.keys import check_key

BERLIN = ZoneInfo("Europe/Berlin")
NAME = "shop.price"


class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - another name of RED


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0
    note: str = field(default="", compare=False)


@dataclass
class Changeable:
    x: int


class Zone(dt.tzinfo):
    def utcoffset(self, moment):
        return dt.timedelta(0)


class Pair(NamedTuple):
    a: int
    b: int


def takes(product, currency="EUR", *, at=None): ...


def takes_plainly(product, /, currency="EUR", at=None): ...


def takes_any(*args, **kwargs): ...


def takes_one(value): ...


def key_of(function, *args, ignore=(), **kwargs):
    return CallKey(Arguments(NAME, inspect.signature(function)), ignore)(args, kwargs)


def text_of(value):
    key = key_of(takes_one, value)
    assert key.startswith("shop.price(value=")
    return key.removeprefix("shop.price(value=").removesuffix(")")


TEXTS = [
    (None, "None"),
    (True, "True"),
    (1, "1"),
    (-(2**70), str(-(2**70))),
    (1.0, "1.0"),
    (-0.0, "-0.0"),
    (0.1, "0.1"),
    (1e300, "1e+300"),
    (math.inf, "inf"),
    (math.nan, "nan"),
    ("", '""'),
    ("1", '"1"'),
    ('a"b,\\', '"a\\"b,\\\\"'),
    ("grün\n", '"grün\\n"'),
    (b"\x00\xff", "bytes(00ff)"),
    (Decimal("1.50"), "Decimal(1.50)"),
    (Decimal("1E+10"), "Decimal(1E+10)"),
    (uuid.UUID(int=5), "UUID(00000000-0000-0000-0000-000000000005)"),
    (dt.date(2026, 1, 2), "date(2026-01-02)"),
    (dt.datetime(2026, 1, 2, 3, 4, 5, 6), "datetime(2026-01-02T03:04:05.000006)"),  # noqa: DTZ001
    (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "datetime(2026-01-02T00:00:00+00:00[UTC])"),
    (dt.datetime(2026, 7, 2, tzinfo=BERLIN), "datetime(2026-07-02T00:00:00+02:00[Europe/Berlin])"),
    (
        dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        "datetime(2026-10-25T02:30:00+01:00[Europe/Berlin],fold)",
    ),
    (dt.time(3, 4), "time(03:04:00)"),
    (dt.timedelta(days=-1, seconds=2, microseconds=3), "timedelta(-1,2,3)"),
    ((), "()"),
    ((1,), "(1)"),
    ((1, "a"), '(1,"a")'),
    ([1, [2]], "[1,[2]]"),
    ({"b": 1, "a": (2,)}, '{"a":(2),"b":1}'),
    ({2, 10}, "set{10,2}"),
    (frozenset({"a"}), 'frozenset{"a"}'),
    (Colour.RED, f"{__name__}.Colour.RED"),
    (Colour.CRIMSON, f"{__name__}.Colour.RED"),
    (Level.LOW, f"{__name__}.Level.LOW"),
    (Right(0), f"{__name__}.Right(0)"),
    (Point(1, note="left out"), f"{__name__}.Point(x=1,y=0)"),
    ([Point((2,), Colour.RED)], f"[{__name__}.Point(x=(2),y={__name__}.Colour.RED)]"),
    (Point, f"class {__name__}.Point"),
    (int, "class builtins.int"),
]


@pytest.mark.parametrize(("value", "text"), TEXTS, ids=[text for _, text in TEXTS])
def test_the_text_of_a_value(value, text):
    assert text_of(value) == text


def test_different_values_have_different_texts():
    texts = [text for value, text in TEXTS if value is not Colour.CRIMSON]
    assert len(set(texts)) == len(texts)
    assert len({text_of(value) for value in (1, 1.0, True, "1", b"1", Decimal(1), (1,), [1], {1}, {1: 1})}) == 10
    assert len({text_of(value) for value in ([[1], 2], [[1, 2]], [1, 2], ["1,2"], ('1","2',), ("1", "2"))}) == 6
    named = dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET"))
    assert text_of(named) != text_of(named.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))))


def test_the_order_of_dicts_and_sets_does_not_count():
    assert text_of({"a": 1, "b": 2}) == text_of({"b": 2, "a": 1})
    assert text_of({*"abcdefgh"}) == text_of({*"hgfedcba"})


def test_the_decimal_context_does_not_count():
    with localcontext(capitals=0):
        assert text_of(Decimal("1E+10")) == "Decimal(1E+10)"


def test_texts_are_the_same_in_every_process():
    code = (
        "import inspect; from coherent_cache.argument_keys import *\n"
        "print(CallKey(Arguments('f', inspect.signature(lambda v: 0)), ())(({'x', 'y', 'z', (1, 'a')},), {}))"
    )
    done = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert done == {'f(v=set{"x","y","z",(1,"a")})\n'}


class Local:
    @staticmethod
    def classes():
        class Inner(enum.Enum):
            A = 1

        return Inner


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "type builtins.object"),
        (Changeable(1), "Changeable"),
        (Pair(1, 2), "Pair"),
        (bytearray(b"x"), "bytearray"),
        (type("Text", (str,), {})("x"), "Text"),
        (test_the_text_of_a_value, "function"),
        (range(3), "range"),
        ([{"a": object()}], "object"),
        ({object(): 1}, "object"),
        (Point(object()), "object"),
        ("\ud800", "lone surrogates"),
        (dt.datetime(2026, 1, 1, tzinfo=Zone()), "time zone of type"),
        (Local.classes().A, "made inside of a function"),
        (Local.classes(), "made inside of a function"),
    ],
    ids=str,
)
def test_what_has_no_stable_text_is_refused_by_name(value, what):
    with pytest.raises(UnstableArgument, match=what) as caught:
        key_of(takes, value)
    assert (caught.value.function, caught.value.argument) == (NAME, "product")
    assert "'key'" in str(caught.value)
    assert isinstance(caught.value, InvalidKey)
    assert isinstance(caught.value, TypeError)
    assert "0x" not in str(caught.value)


def test_what_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(UnstableArgument, match=f"more than {MAX_DEPTH}"):
        text_of(value)


# --- calls ---


@pytest.mark.parametrize(
    ("args", "kwargs", "key"),
    [
        ((7,), {}, '(product=7,currency="EUR",at=None)'),
        ((), {"product": 7}, '(product=7,currency="EUR",at=None)'),
        ((7, "EUR"), {"at": None}, '(product=7,currency="EUR",at=None)'),
        ((7,), {"at": 1, "currency": "USD"}, '(product=7,currency="USD",at=1)'),
    ],
)
def test_a_call_has_one_key_however_it_is_written(args, kwargs, key):
    assert key_of(takes, *args, **kwargs) == NAME + key


@pytest.mark.parametrize("args", [(7,), (7, "EUR"), (7, "EUR", None)])
def test_arguments_by_position_are_completed_by_defaults(args):
    assert key_of(takes_plainly, *args) == key_of(takes_plainly, 7, at=None) == key_of(takes, 7)
    with pytest.raises(TypeError):
        key_of(takes_plainly)
    with pytest.raises(TypeError):
        key_of(takes_plainly, 1, 2, 3, 4)


def test_any_number_of_arguments():
    assert key_of(takes_any) == "shop.price(args=(),kwargs={})"
    assert key_of(takes_any, 1, 2, b=1, a=2) == 'shop.price(args=(1,2),kwargs={"a":2,"b":1})'


def test_parameters_can_be_left_out():
    assert key_of(takes, object(), "USD", ignore=("product", "at")) == 'shop.price(currency="USD")'
    with pytest.raises(
        ConfigError, match=r"ignore: shop\.price has no parameter 'price'; it has product, currency, at"
    ):
        Arguments(NAME, inspect.signature(takes)).check_names("ignore", ["price"])


def test_wrong_arguments_are_the_functions_own_error():
    with pytest.raises(TypeError, match="missing a required argument"):
        key_of(takes)
    with pytest.raises(TypeError, match="too many"):
        key_of(takes_one, 1, 2)


def test_long_keys_have_a_digest():
    short = "x" * (LONGEST_TEXT - len('shop.price(value="")'))
    assert key_of(takes_one, short) == f'shop.price(value="{short}")'
    first, second = key_of(takes_one, short + "y"), key_of(takes_one, short + "z")
    assert first != second
    assert first == key_of(takes_one, short + "y") == "shop.price(#4dc9b35654f37271c2e4e41d3ac62a56ca676006)"
    name = "ü" * 2000
    assert check_key(CallKey(Arguments(name, inspect.signature(takes_one)), ())((1,), {}))


# --- templates ---


def formatted(text, *args, function=takes, **kwargs):
    arguments = Arguments(NAME, inspect.signature(function))
    return Template("key", text, arguments).format(arguments.bind(args, kwargs))


@pytest.mark.parametrize(
    ("text", "args", "result"),
    [
        ("plain", (1,), "plain"),
        ("p:{product}:{currency}", (7,), "p:7:EUR"),
        ("{{}}{product:05d}", (7,), "{}00007"),
        ("{product.x}", (Point(3),), "3"),
        ("{product[a]}", ({"a": "b"},), "b"),
        ("{product:%Y}", (dt.date(2026, 1, 2),), "2026"),
        ("{product}", (dt.date(2026, 1, 2),), "2026-01-02"),
        ("{product}", (uuid.UUID(int=5),), "00000000-0000-0000-0000-000000000005"),
        ("{product!r:>5}", ("a",), "  'a'"),
        ("{product}", ((1, "a"),), '(1,"a")'),
        ("{product}", (Level.LOW,), f"{__name__}.Level.LOW"),
        ("{at}", (1,), "None"),
    ],
)
def test_a_template_formats_what_has_a_stable_text(text, args, result):
    assert formatted(text, *args) == result


@pytest.mark.parametrize("text", ["{product}", "{product!r}", "{product!s}", "{product:}", "{product.__init__}"])
def test_a_template_never_formats_an_object(text):
    with pytest.raises(UnstableArgument, match="no stable text") as caught:
        formatted(text, object())
    assert caught.value.argument == text


def test_only_plain_values_have_formats():
    with pytest.raises(UnstableArgument, match="with a format, '>9'"):
        formatted("{product:>9}", Level.LOW)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{price}", "no parameter 'price'"),
        ("{}", "no parameter ''"),
        ("{0}", "no parameter '0'"),
        ("{price.x}", "no parameter 'price'"),
        ("{price[0]}", "no parameter 'price'"),
        ("{", "no format string"),
        ("{product:{currency}}", "inside of a field"),
    ],
)
def test_a_template_is_checked_when_it_is_made(text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        formatted(text, 1)
    assert caught.value.option == "key"
