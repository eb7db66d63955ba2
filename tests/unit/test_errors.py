"""The exception tree is what its docstring draws; errors carry fields and show no secrets."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re

import pytest

from coherent_cache import errors
from coherent_cache.errors import (
    CacheUnavailable,
    CoherentCacheError,
    ConfigError,
    ForeignValue,
    InvalidKey,
    LoaderDeadlock,
    LoaderTimeout,
    NamespaceMismatch,
    NotCoherent,
    NotPermitted,
    SerializationError,
    UnstableArgument,
    ValueTooLarge,
    VersionConflict,
)
from coherent_cache.versions import Version

V1, V2 = Version(bytes(16), 1), Version(bytes(16), 2)

EXAMPLES = {
    CoherentCacheError: CoherentCacheError("text"),
    ConfigError: ConfigError("ttl", "must be more"),
    InvalidKey: InvalidKey("text"),
    UnstableArgument: UnstableArgument("shop.price", "product", "of type shop.Product"),
    SerializationError: SerializationError("cannot", key="k"),
    ValueTooLarge: ValueTooLarge("k", 2048, 1024),
    VersionConflict: VersionConflict("k", V1, V2),
    LoaderTimeout: LoaderTimeout("k", 1.5),
    LoaderDeadlock: LoaderDeadlock("k"),
    CacheUnavailable: CacheUnavailable("away", maybe_applied=True, applied_keys=("a", "b")),
    NotPermitted: NotPermitted("refused", ("+xadd",), maybe_applied=True),
    NotCoherent: NotCoherent(7.5),
    NamespaceMismatch: NamespaceMismatch("shop", "1/2", "1/1"),
    ForeignValue: ForeignValue("k", "not an envelope"),
}


def classes() -> set[type]:
    return {
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, Exception) and member.__module__ == errors.__name__
    }


def drawn_tree() -> dict[str, str]:
    """Return each name of the docstring's tree with its parent's name."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"([\s│├└─]*)([A-Z]\w+)( {2,}\S.*)?$", line)
        if found is None or (found[3] is None and found[2] != "CoherentCacheError"):
            continue
        depth = len(found[1])
        while above and above[-1][0] >= depth:
            above.pop()
        parents[found[2]] = above[-1][1] if above else ""
        above.append((depth, found[2]))
    return parents


def test_the_docstring_draws_every_class_under_its_parent():
    real = {
        kind.__name__: next((base.__name__ for base in kind.__bases__ if base in classes()), "") for kind in classes()
    }

    assert drawn_tree() == real
    assert len(real) == 14


def test_every_class_has_an_example_here():
    assert set(EXAMPLES) == classes()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_error_belongs_to_the_root_and_says_what_it_means(kind):
    assert issubclass(kind, CoherentCacheError)
    assert kind.__doc__
    assert str(EXAMPLES[kind])


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigError, ValueError),
        (InvalidKey, ValueError),
        (SerializationError, TypeError),
        (ValueTooLarge, TypeError),
        (LoaderTimeout, TimeoutError),
        (LoaderDeadlock, RuntimeError),
    ],
)
def test_some_are_builtin_errors_too(kind, builtin):
    assert isinstance(EXAMPLES[kind], builtin)


@pytest.mark.parametrize("kind", [CacheUnavailable, NotCoherent, NamespaceMismatch, ForeignValue, VersionConflict])
def test_what_redis_does_is_no_error_of_arguments(kind):
    assert kind.__bases__ == (CoherentCacheError,)


def documented_fields(kind: type) -> set[str]:
    section = inspect.cleandoc(kind.__doc__).partition("Attributes:\n")[2]
    return set(re.findall(r"^ {4}(\w+):", section, re.MULTILINE))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_documented_field_is_there(kind):
    assert {name for name in documented_fields(kind) if not hasattr(EXAMPLES[kind], name)} == set()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_field_is_documented(kind):
    inherited = set().union(*(documented_fields(base) for base in kind.__mro__ if base in classes()))
    own = set(vars(EXAMPLES[kind])) - {"reason"}  # SerializationError.reason: the message without the key

    assert own <= inherited


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_cross_process_boundaries(kind, clone):
    # Process pools and task queues pickle what a task raises.
    original = EXAMPLES[kind]

    cloned = clone(original)

    assert type(cloned) is kind
    assert str(cloned) == str(original)
    assert vars(cloned) == vars(original)


# --- what each one says ---


def test_config_error_begins_with_the_option():
    error = ConfigError("ttl", "must be more")

    assert str(error) == "ttl: must be more"
    assert error.option == "ttl"


def test_serialization_error_with_and_without_a_key():
    assert str(SerializationError("cannot")) == "cannot"
    assert SerializationError("cannot").key is None

    error = SerializationError("cannot", key="k")
    assert str(error) == "key 'k': cannot"
    assert (error.key, error.reason) == ("k", "cannot")


def test_value_too_large_says_by_how_much():
    error = ValueTooLarge("k", 2_000_000, 1_048_576)

    assert str(error).startswith("key 'k': the encoded value has 2,000,000 bytes, max_value_bytes allows 1,048,576")
    assert (error.key, error.size, error.limit) == ("k", 2_000_000, 1_048_576)


@pytest.mark.parametrize(
    ("expected", "current", "says"),
    [
        (V1, V2, f"expected to be version {V1} but is version {V2}"),
        (None, V2, f"expected to be absent but is version {V2}"),
        (V1, None, f"expected to be version {V1} but is absent"),
    ],
)
def test_version_conflict_says_both_sides(expected, current, says):
    error = VersionConflict("k", expected, current)

    assert str(error) == f"key 'k' was {says}"
    assert (error.key, error.expected, error.current) == ("k", expected, current)


def test_cache_unavailable_says_whether_a_write_may_have_happened():
    plain, doubtful = CacheUnavailable("away"), CacheUnavailable("away", maybe_applied=True, applied_keys=("a",))

    assert (str(plain), plain.maybe_applied, plain.applied_keys) == ("away", False, ())
    assert str(doubtful) == "away; the write may have happened or may still happen"
    assert (doubtful.maybe_applied, doubtful.applied_keys) == (True, ("a",))


@pytest.mark.parametrize(("age", "shown"), [(7.5, "7.500 s"), (math.inf, "inf s")])
def test_not_coherent_says_for_how_long_and_what_to_do(age, shown):
    error = NotCoherent(age)

    assert shown in str(error)
    assert 'on_disconnect="bypass"' in str(error)
    assert error.horizon_age == age


def test_namespace_mismatch_says_both_settings():
    error = NamespaceMismatch("shop", "1/2", "1/1")

    assert "'shop' was created with format/shards 1/2" in str(error)
    assert "configured with 1/1" in str(error)
    assert (error.namespace, error.found, error.expected) == ("shop", "1/2", "1/1")


def test_foreign_value_says_why_and_what_to_do():
    error = ForeignValue("k", "not an envelope")

    assert str(error) == "key 'k' holds no value of this cache (not an envelope); delete it or overwrite it with set()"
    assert (error.key, error.reason) == ("k", "not an envelope")


def test_no_error_takes_a_value():
    # "No message contains a value or a password": no constructor has a place for one.
    for kind in classes():
        names = set(inspect.signature(kind.__init__).parameters)
        assert not names & {"value", "payload", "data", "password", "url"}, kind
