"""Cached functions: which key, which tags, what is called when. The cache behind is a dict that counts loads."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass

import pytest

from coherent_cache.core.operations import MISSING
from coherent_cache.defaults import DEFAULT
from coherent_cache.errors import ConfigError, UnstableArgument
from coherent_cache.memoize import Cached


class Front:
    """What a cached function asks of its cache, over a dict."""

    def __init__(self):
        self.values = {}
        self.tags = {}
        self.asked = []
        self.loads = 0

    def get_or_set(self, key, loader, **options):
        self.asked.append(options)
        if key not in self.values:
            self.loads += 1
            assert not inspect.signature(loader).parameters, "a parameter would be given a context"
            self.values[key] = loader()
            self.tags[key] = tuple(options["tags"])
        return self.values[key]

    def update(self, key, fn, *, default, **options):
        self.asked.append(options)
        self.values[key] = fn(self.values.get(key, default))
        return self.values[key]

    def delete(self, key):
        return self.values.pop(key, MISSING) is not MISSING


@pytest.fixture
def front():
    return Front()


@pytest.fixture
def cached(front):
    def cached(*, key=None, tags=(), ignore=(), **options):
        return lambda function: Cached(front, function, key=key, tags=tags, ignore=ignore, options=options)

    return cached


CALLS = []


def price(product, currency="EUR"):
    """What a product costs."""
    CALLS.append((product, currency))
    return f"{product} {currency}"


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_equal_arguments_are_one_call(cached, front):
    wrapped = cached()(price)
    assert wrapped(7) == wrapped(product=7) == wrapped(7, currency="EUR") == "7 EUR"
    assert wrapped(7, "USD") == "7 USD"
    assert CALLS == [(7, "EUR"), (7, "USD")]
    assert list(front.values) == [
        f'{__name__}.price(product=7,currency="EUR")',
        f'{__name__}.price(product=7,currency="USD")',
    ]


def test_it_looks_like_the_function(cached):
    wrapped = cached()(price)
    assert (wrapped.__name__, wrapped.__doc__, wrapped.__module__) == ("price", "What a product costs.", __name__)
    assert inspect.signature(wrapped) == inspect.signature(price)
    assert wrapped.uncached is price


def test_the_key_of_a_call(cached):
    assert cached()(price).key(7) == f'{__name__}.price(product=7,currency="EUR")'
    assert cached(key="price:{product}:{currency}")(price).key(7) == "price:7:EUR"
    assert cached(key=lambda product, currency="": f"p{product}{currency}")(price).key(7) == "p7"
    assert cached(ignore=["currency"])(price).key(7, "USD") == f"{__name__}.price(product=7)"


def test_invalidate(cached):
    wrapped = cached()(price)
    assert wrapped.invalidate(7) is False
    wrapped(7)
    assert wrapped.invalidate(product=7) is True
    wrapped(7)
    assert len(CALLS) == 2


def test_refresh_replaces_what_is_there(cached, front):
    wrapped = cached(ttl=5.0, jitter=0.1, tags=["t"])(price)
    wrapped(7)
    front.values[wrapped.key(7)] = "old"
    assert wrapped.refresh(7) == "7 EUR"
    assert (front.loads, len(CALLS)) == (1, 2)
    assert front.asked[-1] == {"ttl": 5.0, "tags": ("t",)}
    assert wrapped(7) == "7 EUR"
    cached()(price).refresh(7)
    assert front.asked[-1] == {"ttl": DEFAULT, "tags": ()}


def test_refresh_loads_what_is_not_there_under_a_lease(cached, front):
    wrapped = cached(ttl=5.0, jitter=0.1)(price)
    assert wrapped.refresh(7) == "7 EUR"
    assert (front.loads, len(CALLS)) == (1, 1)
    assert front.asked[-1] == {"ttl": 5.0, "jitter": 0.1, "tags": ()}


def test_refresh_of_what_is_no_more(cached, front):
    wrapped = cached(key="k")(nothing)
    front.values["k"] = 1
    assert wrapped.refresh() is None
    assert front.values["k"] is MISSING, "which deletes it, in a real cache"


def nothing():
    return MISSING


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ((), ()),
        (("prices",), ("prices",)),
        (["prices", "product:{product}"], ("prices", "product:7")),
        (lambda product, currency="EUR": [f"{product}", currency], ("7", "EUR")),
    ],
)
def test_tags(cached, front, tags, expected):
    wrapped = cached(tags=tags)(price)
    wrapped(7)
    assert front.tags[wrapped.key(7)] == expected


def test_options_go_to_the_load(cached, front):
    cached(ttl=5.0, hard_timeout=1.0)(price)(7)
    assert front.asked == [{"ttl": 5.0, "hard_timeout": 1.0, "tags": ()}]


def test_errors_of_the_function_pass(cached, front):
    with pytest.raises(ZeroDivisionError):
        cached()(fail)(1)
    assert front.values == {}


def fail(number):
    return number / 0


# --- methods ---


@dataclass(frozen=True)
class Money:
    amount: int

    def times(self, factor):
        CALLS.append((self.amount, factor))
        return self.amount * factor


class Shop:
    def __init__(self, city="Bonn"):
        self.city = city

    def price(self, product):
        """What it costs here."""
        CALLS.append((self.city, product))
        return f"{product} in {self.city}"


def with_method(owner, name, wrapped):
    return type(owner.__name__, (owner,), {name: wrapped})


def test_a_method_of_a_value_has_the_value_in_its_key(cached):
    times = cached()(Money.times).__get__(Money(3))
    assert times(2) == 6
    assert times.key(2) == f"{__name__}.Money.times(self={__name__}.Money(amount=3),factor=2)"


def test_a_method_of_an_object_says_what_matters_of_it(cached):
    with pytest.raises(UnstableArgument, match=r"argument 'self' of .*Shop.price is of type .*Shop") as caught:
        cached()(Shop.price).__get__(Shop())(7)
    assert "'ignore'" in str(caught.value)
    assert CALLS == []

    by_key = with_method(Shop, "price", cached(key="price:{self.city}:{product}")(Shop.price))
    assert by_key("Bonn").price(7) == by_key("Bonn").price(product=7) == "7 in Bonn"
    assert by_key("Ulm").price(7) == "7 in Ulm"
    assert CALLS == [("Bonn", 7), ("Ulm", 7)]

    left_out = with_method(Shop, "price", cached(ignore=["self"])(Shop.price))
    assert left_out("Ulm").price(8) == left_out("Bonn").price(8) == "8 in Ulm"


def test_a_bound_method_has_what_the_function_has(cached):
    shop = with_method(Shop, "price", cached(key="price:{self.city}:{product}")(Shop.price))
    bonn = shop("Bonn")
    assert bonn.price(7) == "7 in Bonn"
    assert bonn.price.key(7) == "price:Bonn:7"
    assert bonn.price.refresh(7) == "7 in Bonn"
    assert bonn.price.invalidate(7) is True
    assert bonn.price.uncached(7) == "7 in Bonn"
    assert len(CALLS) == 3
    assert (bonn.price.__name__, bonn.price.__doc__) == ("price", "What it costs here.")
    assert shop.price.key(bonn, 7) == "price:Bonn:7"


def test_class_methods_and_static_methods_go_outside(cached):
    def name(cls, number):
        return f"{cls.__name__} {number}"

    kind = type(
        "Kind",
        (Shop,),
        {"name": classmethod(cached(key="{cls}:{number}")(name)), "cost": staticmethod(cached()(price))},
    )
    with pytest.raises(UnstableArgument, match="inside of a function"):
        type("x.<locals>.Kind", (), {"name": classmethod(cached(key="{cls}:{number}")(name))}).name(1)
    assert kind.name(1) == "Kind 1"
    assert kind.cost(7) == kind().cost(7) == "7 EUR"
    for wrapper in (classmethod, staticmethod):
        with pytest.raises(ConfigError, match=f"goes below @{wrapper.__name__}"):
            cached()(wrapper(price))


# --- what is refused when it is decorated ---


def maker(number):
    def inner(product):
        return product * number

    return inner


class Parent:
    def name(self):
        return "parent"


class Child(Parent):
    def name(self):
        return super().name()


async def coroutine():
    return 1


async def async_generator():
    yield 1


def generator():
    yield 1


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (7, {}, "cached: decorates functions, not int"),
        (coroutine, {}, "use AsyncCoherentCache"),
        (async_generator, {}, "generator function"),
        (generator, {}, "generator function"),
        (lambda product: product, {}, "key: is needed for a lambda"),
        (functools.partial(price, 7), {}, "key: is needed for a lambda or other callable"),
        (maker(2), {}, "key: is needed: maker.<locals>.inner refers to variables"),
        (price, {"key": 7}, "key: must be a format string, a callable or None, not int"),
        (price, {"key": "{price}"}, "key: .* has no parameter 'price'"),
        (price, {"tags": "prices"}, "tags: must be a collection of str"),
        (price, {"tags": ["{price}"]}, "tags: .* has no parameter 'price'"),
        (price, {"ignore": "product"}, "ignore: must be a collection of str"),
        (price, {"ignore": ["price"]}, "ignore: .* has no parameter 'price'"),
        (price, {"ignore": ["product"], "key": "k"}, "ignore: is for keys made of the arguments"),
    ],
)
def test_what_cannot_be_cached_is_refused_by_name(cached, function, options, says):
    with pytest.raises(ConfigError, match=says):
        cached(**options)(function)


def test_with_a_key_of_its_own_any_callable_is_cached(cached):
    assert cached(key="double:{product}")(maker(2))(3) == 6
    assert cached(key="triple:{product}")(lambda product: product * 3)(3) == 9
    assert cached(key="price")(functools.partial(price, 7))() == "7 EUR"


def test_a_decorated_function_is_judged_by_the_innermost(cached):
    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    assert cached()(logged(price))(7) == "7 EUR"
    with pytest.raises(ConfigError, match="refers to variables"):
        cached()(logged(maker(2)))


def test_super_is_no_variable_of_a_function_around(cached):
    assert cached(ignore=["self"])(Child.name).__get__(Child())() == "parent"


def test_attributes_of_the_function_are_taken_over_and_hide_none_of_the_wrappers_own(front, cached):
    class Shop:
        def price(self, product):
            return product

        price.unit = "EUR"
        price._options = price._cache = price._instance = price._cached = None
        price = cached(key="{product}")(price)

    assert Shop.price.unit == Shop().price.unit == "EUR"
    assert Shop().price("tea") == "tea"
    assert front.values == {"tea": "tea"}


def test_a_cached_function_may_be_cached_once_more(front, cached):
    outer = Front()
    inner = cached(ttl=2)(price)
    function = Cached(outer, inner, key="outer:{product}", tags=("outer",), ignore=(), options={"ttl": 1})
    assert function("tea") == price("tea")
    assert (list(outer.values), outer.asked) == (["outer:tea"], [{"tags": ("outer",), "ttl": 1}])
    assert (list(front.values), front.asked) == ([inner.key("tea")], [{"tags": (), "ttl": 2}])
