"""The Django backend: Django's own tests for backends, and what is ours: sharing, tags, serializers, fragments."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
import warnings
from inspect import signature
from unittest import mock

import django
import pytest
from asgiref.local import Local
from asgiref.sync import async_to_sync
from django.conf import settings

NAME = f"django-{os.getpid()}"
URL = f"memory://{NAME}"
FAST = {"heartbeat": 0.1, "max_staleness": 2.0}
QUICK = {"heartbeat": 0.02, "max_staleness": 0.1}  # the first acknowledged write of a new namespace waits for so long

settings.configure(
    CACHES={"default": {"BACKEND": "coherent_cache.contrib.django.CoherentCacheBackend", "LOCATION": URL}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["coherent_cache.contrib.django"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    ALLOWED_HOSTS=["testserver"],
    SECRET_KEY="for tests",
    USE_TZ=True,
)
django.setup()

from django.contrib.sessions.backends.cache import SessionStore  # noqa: E402  # noqa: E402
from django.core.cache import BaseCache, CacheHandler, cache, caches  # noqa: E402
from django.db import connection  # noqa: E402
from django.template import Context, Template, TemplateSyntaxError  # noqa: E402
from django.test import TestCase, override_settings  # noqa: E402
from django.utils.safestring import SafeString, mark_safe  # noqa: E402

from coherent_cache import CoherentCache, ConfigError, InvalidKey, SerializationError, VersionConflict  # noqa: E402
from coherent_cache.contrib.django import CoherentCacheBackend, UnpicklableValue, backend  # noqa: E402
from coherent_cache.remote.memory import forget_server  # noqa: E402
from tests.contrib import django_base_cache_tests  # noqa: E402
from tests.contrib.django_base_cache_tests import (  # noqa: E402
    BaseCacheTests,
    Poll,
    Unpicklable,
    caches_setting_for_tests,
)

BACKEND = "coherent_cache.contrib.django.CoherentCacheBackend"

pytestmark = pytest.mark.filterwarnings("ignore:serializer='pickle'")


@pytest.fixture(autouse=True)
def _fresh(request):
    """Give every test caches of its own, and close them."""
    yield
    if request.cls is None:  # the others share theirs
        close_all()


def close_all():
    for each in backend._shared.values():
        each.close()
    backend._shared.clear()
    caches._connections = Local()
    forget_server(NAME)


def handler(url, *, options=FAST, **params):
    """Return Django's ``caches`` for a configuration of one alias, as a process would have it."""
    return CacheHandler({"default": {"BACKEND": BACKEND, "LOCATION": url, "OPTIONS": options, **params}})


@override_settings(
    CACHES=caches_setting_for_tests(
        exclude={"cull", "zero_cull"},
        BACKEND=BACKEND,
        LOCATION=URL,
        OPTIONS={"serializer": "pickle", **FAST},
    )
)
class TestDjangosOwn(BaseCacheTests, TestCase):
    """Django's tests of its backends; below are those cases that sleep."""

    @classmethod
    def setUpClass(cls):
        with connection.schema_editor() as editor:
            editor.create_model(Poll)
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        with connection.schema_editor() as editor:
            editor.delete_model(Poll)
        close_all()

    def entry(self, key):
        return cache.coherent_cache.get_entry(cache.make_key(key))

    def test_expiration(self):
        cache.set("expire1", "very quickly", 0.01)
        cache.set_many({"expire2": "very quickly"}, 0.01)
        while cache.get("expire1") is not None or cache.get("expire2") is not None:
            pass
        assert cache.add("expire1", "newvalue") is True
        assert cache.get("expire1") == "newvalue"
        assert cache.has_key("expire2") is False

    def test_touch(self):
        cache.set("key", "value", timeout=1000)
        assert cache.touch("key", timeout=2000) is True
        assert self.entry("key").expires_in > 1000
        assert cache.touch("key") is True
        assert self.entry("key").expires_in <= 300
        assert cache.touch("nonexistent") is False

    def test_forever_timeout(self):
        cache.set("key1", "eggs", None)
        assert cache.add("key2", "ham", None) is True
        cache.set_many({"key3": "sausage"}, None)
        cache.set("key4", "belgian fries", timeout=1000)
        assert cache.touch("key4", timeout=None) is True
        assert cache.get_or_set("key5", None, timeout=None) is None
        for key in ("key1", "key2", "key3", "key4", "key5"):
            assert self.entry(key).expires_in is None

    def test_timeouts(self):
        cache.set("default", 1)
        assert self.entry("default").expires_in <= 300
        assert self.entry("default").expires_in > 200
        cache.set("key", 1)
        cache.set("key", 2, -1)
        assert cache.get("key") is None
        assert cache.get_or_set("key", lambda: 3, 0) == 3
        assert cache.get("key") is None
        cache.set("key", 4)
        assert cache.get_or_set("key", lambda: 3, 0) == 4
        assert cache.add("key", 5, 0) is False
        assert cache.get("key") == 4

    def test_a_timeout_too_short_for_redis(self):
        cache.set("key", 1, 1e-9)
        cache.touch("key", 1e-9)
        while cache.get("key") is not None:
            pass

    def test_incr_keeps_the_time_to_live(self):
        cache.set("key", 1, None)
        cache.incr("key")
        assert self.entry("key").expires_in is None
        cache.set("key", 1, 1000)
        cache.incr_version("key")
        assert cache.coherent_cache.get_entry(cache.make_key("key", 2)).expires_in > 900

    def test_what_cannot_be_pickled_is_an_error_of_both_kinds(self):
        for store in (cache.set, cache.get_or_set, lambda key, value: cache.set_many({key: value})):
            with pytest.raises(UnpicklableValue) as raised:
                store("unpicklable", Unpicklable())
            assert isinstance(raised.value, SerializationError)
            assert isinstance(raised.value, pickle.PickleError)
            assert raised.value.key == cache.make_key("unpicklable")
            assert not hasattr(raised.value, "__notes__")
            again = pickle.loads(pickle.dumps(raised.value))
            assert (type(again), str(again)) == (UnpicklableValue, str(raised.value))


class OnLoop:
    """A backend whose methods are its asynchronous ones, called on an event loop."""

    def __init__(self, alias, runner):
        vars(self).update(alias=alias, runner=runner)

    def __getattr__(self, name):
        plain, found = (getattr(caches[self.alias], prefix + name, None) for prefix in ("", "a"))
        if not callable(found):
            return plain
        return lambda *args, **kwargs: self.runner.run(found(*args, **kwargs))

    def __setattr__(self, name, value):
        setattr(caches[self.alias], name, value)

    def __contains__(self, key):
        return self.has_key(key)


class TestDjangosOwnOnALoop(TestDjangosOwn):
    """The same, with the asynchronous methods."""

    def setUp(self):
        super().setUp()
        runner = self.enterContext(asyncio.Runner())
        on_loop = {alias: OnLoop(alias, runner) for alias in caches}
        for module in (django_base_cache_tests, sys.modules[__name__]):
            self.enterContext(mock.patch.object(module, "cache", on_loop["default"]))
        self.enterContext(mock.patch.object(django_base_cache_tests, "caches", on_loop))

    def test_these_are_the_asynchronous_methods(self):
        with mock.patch.object(CoherentCacheBackend, "get", None):
            cache.set("key", 1)
            assert cache.get("key") == 1

    def refuse_query_sets(self):
        # To pickle one asks the database, which Django does not allow on an event loop.
        with pytest.raises(SerializationError, match="SynchronousOnlyOperation"):
            cache.set("deferred_queryset", Poll.objects.defer("question"))

    test_cache_write_for_model_instance_with_deferred = refuse_query_sets
    test_cache_read_for_model_instance_with_deferred = refuse_query_sets


def test_every_method_has_an_asynchronous_twin():
    inherited = {"aclose", "adecr", "adecr_version"}
    own = {name for name in vars(CoherentCacheBackend) if not name.startswith("_")}
    for name in vars(BaseCache):
        if name.startswith("a") and asyncio.iscoroutinefunction(getattr(BaseCache, name)):
            assert (name in own) is (name not in inherited), name
            plain = signature(getattr(CoherentCacheBackend, name[1:])).parameters
            assert signature(getattr(CoherentCacheBackend, name)).parameters == plain, name


def test_without_a_choice_nothing_is_pickled_and_the_error_says_what_to_do(url):
    caches = handler(url)
    caches["default"].set("plain", {"a": [1, (2, None)]})
    assert caches["default"].get("plain") == {"a": [1, (2, None)]}
    for store in (
        lambda: caches["default"].set("poll", Poll(pub_date=None)),
        lambda: caches["default"].add("poll", Poll(pub_date=None)),
        lambda: caches["default"].set_many({"poll": Poll(pub_date=None)}),
        lambda: caches["default"].get_or_set("poll", lambda: Poll(pub_date=None)),
    ):
        with pytest.raises(SerializationError) as raised:
            store()
        (note,) = raised.value.__notes__
        assert "'serializer': 'pickle'" in note
    assert caches["default"].get("poll") is None


def test_pickle_is_warned_about(url):
    with pytest.warns(UserWarning, match="can execute code"):
        handler(url, options={"serializer": "pickle"})["default"]


def test_threads_and_contexts_share_one_cache(url):
    caches = handler(url)
    mine, others = caches["default"], []

    def look():
        others.append(caches["default"])
        caches["default"].set("key", "value")

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    asyncio.run(asyncio.to_thread(look))
    assert len({id(each) for each in (mine, *others)}) == 3  # Django makes a backend for each of them
    assert {each.coherent_cache for each in others} == {mine.coherent_cache}
    assert mine.get("key") == "value"


def test_the_end_of_a_request_closes_nothing(url):
    caches = handler(url)
    caches["default"].set("key", 1)
    caches.close_all()
    assert caches["default"].coherent_cache.state == "coherent" or caches["default"].coherent_cache.wait_ready()
    assert caches["default"].get("key") == 1


def test_other_options_are_another_cache(url):
    one = handler(url)["default"]
    other = handler(url, options=FAST | {"namespace": "other"})["default"]
    again = handler(url, KEY_PREFIX="site", VERSION=7)["default"]
    assert one.coherent_cache is not other.coherent_cache
    assert one.coherent_cache is again.coherent_cache
    one.set("key", 1)
    other.clear()
    assert one.get("key") == 1
    assert (other.get("key"), again.get("key")) == (None, None)


def test_a_peer_sees_what_a_view_writes(url):
    one = handler(url)["default"]
    with CoherentCache(url, namespace="django", **FAST) as peer:
        assert one.coherent_cache.wait_ready()
        assert peer.wait_ready()
        one.set("key", 1)
        assert peer.get(one.make_key("key")) == 1
        version = peer.set(one.make_key("key"), 2)
        assert one.coherent_cache.get(one.make_key("key"), min_version=version) == 2


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        ("", {}, "LOCATION"),
        (["redis://a", "redis://b"], {}, "LOCATION"),
        ("http://localhost", {}, "url"),
        ("memory://x", {"ttl": 5}, "TIMEOUT"),
        ("memory://x", {"url": "memory://y"}, "LOCATION"),
        ("memory://x", {"MAX_ENTRIES": 5}, "max_entries"),
        ("memory://x", {"CULL_FREQUENCY": 5}, "CULL_FREQUENCY"),
        ("memory://x", {"max_entry": 5}, "max_entry"),
        ("memory://x", {"max_entries": 0}, "max_entries"),
        ("memory://x", {"serializer": []}, "hashable"),
    ],
)
def test_settings_that_cannot_be_are_named(location, options, message):
    with pytest.raises(ConfigError, match=message):
        handler(location, options=options)["default"]


def test_a_key_too_long_for_us_is_refused(url):
    with pytest.warns(Warning, match="longer than 250"), pytest.raises(InvalidKey):
        handler(url)["default"].set("k" * 2000, 1)


def test_increments_of_threads_are_not_lost(url):
    caches = handler(url)
    caches["default"].set("count", 0, None)

    def count():
        for _ in range(20):
            caches["default"].incr("count")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caches["default"].get("count") == 80


def test_an_increment_of_what_a_peer_has_just_changed(url, monkeypatch):
    ours = handler(url)["default"]
    ours.set("count", 1)
    entry = ours.coherent_cache.get_entry(ours.make_key("count"))
    ours.set("count", 10)
    stale = iter([entry])
    real = ours.coherent_cache.get_entry
    monkeypatch.setattr(ours.coherent_cache, "get_entry", lambda key: next(stale, None) or real(key))
    assert ours.incr("count") == 11

    monkeypatch.setattr(ours.coherent_cache, "get_entry", lambda key: entry)
    with pytest.raises(VersionConflict):
        ours.incr("count")


def test_tags(url):
    ours = handler(url, options=QUICK)["default"]
    ours.set("set", 1, tags=["t"])
    ours.add("add", 1, tags=["t"])
    ours.set_many({"many": 1}, tags=["t"])
    ours.get_or_set("load", 1, tags=["t"])
    ours.set("count", 1)
    ours.incr("count", tags=["t"])
    ours.set("other", 1, tags=["u"])
    everything = ["set", "add", "many", "load", "count", "other"]
    assert ours.get_many(everything).keys() == set(everything)
    ours.invalidate_tags("t")
    assert ours.get_many(everything) == {"other": 1}
    assert ours.invalidate_tags("u", wait=10).members == 0
    assert ours.get_many(everything) == {}


def test_what_is_written_during_a_load_wins(url):
    ours = handler(url)["default"]

    def load():
        ours.delete("key")
        return "old"

    assert ours.get_or_set("key", load) == "old"
    assert ours.get("key") is None


def test_views_of_both_kinds_share_one_local_tier(url):
    caches = handler(url)
    backend = caches["default"]
    backend.coherent_cache.wait_ready()

    async def view():
        await caches["default"].aset("key", 1)
        return caches["default"].acoherent_cache

    assert asyncio.run(view()) is backend.acoherent_cache
    assert backend.coherent_cache.get_entry(backend.make_key("key")).tier == "local"


def test_each_asynchronous_view_under_wsgi_has_a_loop_of_its_own(url):
    backend = handler(url)["default"]
    for number in range(5):
        async_to_sync(backend.aset)("key", number)
        assert async_to_sync(backend.aget)("key") == backend.get("key") == number
    assert len(backend.acoherent_cache._loops) <= 1


def test_an_asynchronous_default(url):
    caches, threads = handler(url), []

    def plain():
        threads.append(threading.current_thread())
        return "plain"

    async def coroutine():
        threads.append(threading.current_thread())
        return "coroutine"

    async def use():
        cache = caches["default"]
        assert await cache.aget_or_set("a", coroutine) == await cache.aget("a") == "coroutine"
        assert await cache.aget_or_set("b", plain) == await cache.aget("b") == "plain"
        assert await cache.aget_or_set("c", coroutine, 0) == "coroutine"
        assert await cache.aget_or_set("d", plain, 0) == "plain"
        assert await cache.aget_many("cd") == {}

    asyncio.run(use())
    loop = threading.current_thread()
    assert [each is loop for each in threads] == [True, False, True, False]


def test_asynchronous_tags_and_notes(url):
    caches = handler(url, options=QUICK)

    async def use():
        cache = caches["default"]
        await cache.aset("a", 1, tags=["t"])
        await cache.aset_many({"b": 1}, tags=["t"])
        await cache.aadd("c", 1, tags=["t"])
        await cache.aget_or_set("d", 1, tags=["t"])
        await cache.aincr("a", tags=["t"])
        assert await cache.aget_many("abcd") == {"a": 2, "b": 1, "c": 1, "d": 1}
        await cache.ainvalidate_tags("t")
        assert await cache.aget_many("abcd") == {}
        assert (await cache.ainvalidate_tags("t", wait=10)).members == 0
        for store in (cache.aset, cache.aadd, cache.aget_or_set):
            with pytest.raises(SerializationError) as raised:
                await store("key", Poll(pub_date=None))
            assert "'serializer': 'pickle'" in raised.value.__notes__[0]

    asyncio.run(use())


def test_sessions_need_no_pickle():
    session = SessionStore()
    session["user"] = {"id": 7, "cart": [1, 2]}
    session.save()
    assert SessionStore(session.session_key)["user"] == {"id": 7, "cart": [1, 2]}
    session.delete()
    assert not SessionStore().exists(session.session_key)


# -- fragments ---------------------------------------------------------------------------------------------------------


class Counter:
    """Something whose text changes whenever it is rendered."""

    def __init__(self):
        self.calls = 0

    def __str__(self):
        self.calls += 1
        return f"<b>{self.calls}</b>"


def render(tag, **context):
    text = "{% load coherent_cache %}{% " + tag + " %}{{ counter }}{% endcoherent_cache %}"
    return Template(text).render(Context(context))


@pytest.fixture
def counter():
    return Counter()


def test_a_fragment_is_rendered_once_and_stays_escaped(counter):
    first = render("coherent_cache 60 name", counter=counter)
    again = render("coherent_cache 60 name", counter=counter)
    assert first == again == "&lt;b&gt;1&lt;/b&gt;"
    assert isinstance(again, SafeString)


def test_a_fragment_varies_on_its_arguments(counter):
    tag = "coherent_cache 60 name user.pk lang"
    pages = [render(tag, counter=counter, user={"pk": pk}, lang=lang) for pk in (1, 2) for lang in ("de", "en")]
    assert len(set(pages)) == 4
    assert render(tag, counter=counter, user={"pk": 2}, lang="en") == pages[-1]


@pytest.mark.parametrize(
    ("words", "context"),
    [
        ('tags="products, news"', {}),
        ("tags=tags", {"tags": ["news"]}),
        ("tags=tags", {"tags": mark_safe("news")}),
        ('tags="news" using="default"', {}),
        ('using="default" tags="news"', {}),
    ],
)
def test_a_fragment_goes_with_any_of_its_tags(counter, words, context):
    tag = f"coherent_cache 60 name {words}"
    first = render(tag, counter=counter, **context)
    cache.invalidate_tags("others")
    assert render(tag, counter=counter, **context) == first
    cache.invalidate_tags("news")
    assert render(tag, counter=counter, **context) != first


def test_a_fragment_whose_tag_is_invalidated_while_it_is_rendered_is_not_kept():
    class Late(Counter):
        def __str__(self):
            cache.invalidate_tags("news")
            return super().__str__()

    counter = Late()
    assert "1" in render('coherent_cache 60 name tags="news"', counter=counter)
    assert "2" in render('coherent_cache 60 name tags="news"', counter=counter)


def test_the_seconds_of_a_fragment(counter):
    assert render("coherent_cache 0 name", counter=counter) != render("coherent_cache 0 name", counter=counter)
    assert render("coherent_cache None name", counter=counter) == render("coherent_cache None name", counter=counter)
    assert render("coherent_cache t name", counter=counter, t=9) == render("coherent_cache 60 name", counter=counter)


@pytest.mark.parametrize(
    ("tag", "context", "message"),
    [
        ("coherent_cache 60", {}, "the seconds and the name"),
        ("coherent_cache", {}, "the seconds and the name"),
        ('coherent_cache "soon" name', {}, "seconds or None, not 'soon'"),
        ("coherent_cache 60 name tags=tags", {"tags": 7}, "tags must be"),
        ('coherent_cache 60 name using="nowhere"', {}, "no cache 'nowhere'"),
    ],
)
def test_a_tag_that_cannot_be_says_why(tag, context, message):
    with pytest.raises(TemplateSyntaxError, match=message):
        render(tag, counter="", **context)


def test_fragments_prefer_an_alias_of_their_own(counter, url):
    both = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "template_fragments": {"BACKEND": BACKEND, "LOCATION": url, "OPTIONS": FAST},
    }
    with override_settings(CACHES=both):
        assert render("coherent_cache 60 name", counter=counter) == render("coherent_cache 60 name", counter=counter)
        with pytest.raises(TemplateSyntaxError, match="needs a CoherentCacheBackend"):
            render('coherent_cache 60 name using="default"', counter=counter)


def test_djangos_own_tag_needs_pickle(url):
    page = Template("{% load cache %}{% cache 60 name %}x{% endcache %}")
    with pytest.raises(SerializationError):
        page.render(Context())
    pickling = {"default": {"BACKEND": BACKEND, "LOCATION": url, "OPTIONS": FAST | {"serializer": "pickle"}}}
    with override_settings(CACHES=pickling), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert page.render(Context()) == page.render(Context()) == "x"


def test_the_backend_is_found_by_its_short_name():
    assert isinstance(caches["default"], CoherentCacheBackend)
