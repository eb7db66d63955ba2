"""The Flask extension: application factories, configuration, functions that are decorated before there is an app."""

from __future__ import annotations

import flask
import pytest

from coherent_cache import CoherentCache, ConfigError
from coherent_cache.contrib.flask import FlaskCoherentCache

shop = FlaskCoherentCache()
CALLS = []


@shop.cached(ttl=60, tags=["prices"])
def price(product, currency="EUR"):
    CALLS.append(product)
    return [product, currency]


@pytest.fixture
def create_app(name):
    """Make applications in the manner of a factory."""
    apps = []

    def create(extension, app_name="shop", **config):
        app = flask.Flask(app_name)
        options = {"heartbeat": 0.1} | config.pop("COHERENT_CACHE_OPTIONS", {})
        app.config |= {"COHERENT_CACHE_URL": f"memory://{name}", "COHERENT_CACHE_OPTIONS": options} | config
        extension.init_app(app)
        apps.append(app)
        return app

    yield create
    for app in apps:
        app.extensions["coherent_cache"].close()


def test_views_use_the_applications_cache(create_app):
    cache = FlaskCoherentCache()
    app, loaded = create_app(cache), []

    @app.get("/users/<int:number>")
    def user(number):
        def load():
            loaded.append(number)
            return {"id": number}

        return cache.current.get_or_set(f"user:{number}", load)

    @app.delete("/users/<int:number>")
    def forget(number):
        return {"was there": cache.current.delete(f"user:{number}")}

    client = app.test_client()
    assert client.get("/users/7").json == client.get("/users/7").json == {"id": 7}
    assert loaded == [7]
    assert client.delete("/users/7").json == {"was there": True}
    assert client.get("/users/7").json == {"id": 7}
    assert loaded == [7, 7]


def test_each_application_has_a_cache_of_its_own(create_app):
    cache = FlaskCoherentCache()
    one, other, same = create_app(cache, "one"), create_app(cache, "other"), create_app(cache, "one")
    caches = [app.extensions["coherent_cache"] for app in (one, other, same)]
    assert len(set(caches)) == 3
    assert [each.namespace for each in caches] == ["one", "other", "one"]
    for app, each in zip((one, other, same), caches, strict=True):
        with app.app_context():
            assert cache.current is each
    caches[0].set("key", 1)
    assert caches[2].get("key") == 1  # the same namespace: coherent
    assert caches[1].get("key") is None


def test_a_function_can_be_decorated_before_there_is_an_application(create_app):
    CALLS.clear()
    with pytest.raises(RuntimeError, match="application context"):
        price(7)
    one, other = create_app(shop, "one"), create_app(shop, "other")
    for app in (one, other):
        with app.app_context():
            assert price(7) == price(7, "EUR") == [7, "EUR"]
    assert CALLS == [7, 7]
    with one.app_context():
        assert price.refresh(7) == [7, "EUR"]
        assert price.invalidate(7) is True
        assert price(7) == [7, "EUR"]
        shop.current.invalidate_tags("prices")
        assert price(7) == [7, "EUR"]
    assert len(CALLS) == 5


def test_where_options_come_from(create_app, name):
    cache = FlaskCoherentCache(max_entries=5, namespace="given", heartbeat=0.5)
    one = create_app(cache, COHERENT_CACHE_OPTIONS={"max_entries": 7, "heartbeat": 0.1})
    other = create_app(cache, COHERENT_CACHE_NAMESPACE="configured")
    caches = [app.extensions["coherent_cache"] for app in (one, other)]
    assert [each.stats().max_entries for each in caches] == [7, 5]
    assert [each.namespace for each in caches] == ["given", "configured"]


def test_an_application_at_once(name):
    app = flask.Flask("shop")
    cache = FlaskCoherentCache(app, url=f"memory://{name}")
    with app.app_context(), cache.current as current:
        assert isinstance(current, CoherentCache)
        assert current.namespace == "shop"


def test_what_cannot_be_is_named(create_app):
    cache = FlaskCoherentCache()
    with pytest.raises(ConfigError, match="COHERENT_CACHE_URL"):
        cache.init_app(flask.Flask("shop"))
    with pytest.raises(ConfigError, match="ttl"):
        create_app(cache, COHERENT_CACHE_OPTIONS={"ttl": -1})
    strange = flask.Flask("shop")
    strange.config["COHERENT_CACHE_OPTIONS"] = "ttl=5"
    with pytest.raises(ConfigError, match="COHERENT_CACHE_OPTIONS: must be a dict"):
        cache.init_app(strange)
    app = create_app(cache)
    with pytest.raises(ConfigError, match="already"):
        cache.init_app(app)
    with flask.Flask("other").app_context(), pytest.raises(ConfigError, match="init_app"):
        cache.current  # noqa: B018
