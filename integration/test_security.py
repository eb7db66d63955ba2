"""TLS with client certificates, users with the least rights, unix sockets, rotated passwords; RESP2 and RESP3."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

import pytest
import redis

from coherent_cache import MISSING, AsyncCoherentCache, CacheUnavailable, CoherentCache, NotPermitted, acl_rule
from coherent_cache.events import RightsMissing, SubscriberLost
from coherent_cache.remote.rights import RUN_BY_SCRIPTS, SENT
from integration.servers import OwnedServer, free_port, wait_until

PATIENCE = 20.0
OPTIONS = {"heartbeat": 0.1, "max_staleness": 1.0}
PROTOCOLS = [3, 2]


def everything(cache: CoherentCache, peer: CoherentCache) -> None:
    """Do every operation that sends something to Redis, and see the peer hear of it."""
    for each in (cache, peer):
        assert each.wait_ready(PATIENCE)
    version = cache.set("a", 1, ttl=60)
    assert peer.get("a") == 1
    cache.set("a", 2, if_version=version)
    wait_until(lambda: peer.get("a") == 2, PATIENCE, "the peer hears")
    cache.touch("a", ttl=30)
    cache.update("a", lambda value: 3 if value is not MISSING else 0)
    cache.set_many({"b": 1, "c": 2}, tags=("t",))
    cache.set("d", 1, tags=("t",))
    wait_until(lambda: peer.get_many(["a", "b", "c"]) == {"a": 3, "b": 1, "c": 2}, PATIENCE, "the peer hears of all")
    cache.delete_many(["c"])
    cache.invalidate_tags("u")
    cache.clear_local()
    assert cache.get_many(["b"]) == {"b": 1}  # tags are judged
    with cache.batch() as batch:
        batch.set("e", 1)
        batch.delete("b")
    assert cache.get_or_set("f", lambda: 1, ttl=60) == 1
    assert cache.get_or_set("g", lambda: 1, tags=("t",)) == 1
    with pytest.raises(KeyError):
        cache.get_or_set("h", {}.popitem)  # gives up its lease
    assert cache.set("a", 4, wait=PATIENCE).acknowledged
    assert cache.delete("a", wait=PATIENCE).acknowledged
    cache.clear()
    wait_until(lambda: peer.get("d") is None, PATIENCE, "the peer hears of the clear")


@pytest.fixture
def pair(namespace):
    """Open two caches of one source; both are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_two(source, **options):
            options = {"namespace": namespace, **OPTIONS, **options}
            return tuple(stack.enter_context(CoherentCache(source, **options)) for _ in range(2))

        yield open_two


# -- users -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def admin(redis_server):
    with redis_server.client() as client:
        yield client
        if b"least" in client.acl_users():
            client.acl_deluser("least")


def limit(admin, rule: str) -> None:
    admin.execute_command("ACL", "SETUSER", "least", "reset", "on", ">secret", *rule.split())


def as_user(server, protocol: int = 3, database: int = 0) -> str:
    parts = server.url.replace("redis://", "redis://least:secret@").rpartition("/")
    return f"{parts[0]}/{database}?protocol={protocol}"


@pytest.mark.parametrize("database", [0, 3])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_least_rights_are_enough_for_everything(redis_server, admin, pair, namespace, protocol, database):
    limit(admin, acl_rule(namespace, database=database))
    admin.acl_log_reset()
    cache, peer = pair(as_user(redis_server, protocol, database))
    events = []
    cache.on_event(events.append)
    everything(cache, peer)
    assert not [event for event in events if isinstance(event, RightsMissing | SubscriberLost)]
    assert not [entry for entry in admin.acl_log() if entry["object"] not in (b"client|setinfo", "client|setinfo")]


def pieces() -> list[str]:
    return acl_rule("NAMESPACE").split()


@pytest.mark.parametrize("piece", pieces())
def test_without_any_one_right_something_fails_and_tells_which(redis_server, admin, namespace, piece):
    lost = piece.replace("NAMESPACE", namespace)
    limit(admin, " ".join(right for right in acl_rule(namespace).split() if right != lost))
    named: list[str] = []
    refusals: list[CacheUnavailable] = []
    with CoherentCache(as_user(redis_server), namespace=namespace, **OPTIONS) as cache:
        cache.on_event(lambda event: named.extend(event.rights) if isinstance(event, RightsMissing) else None)
        calls = [
            lambda: cache.wait_ready(PATIENCE),
            lambda: cache.set("a", 1),
            lambda: cache.get("never stored"),
        ]
        for call in calls:
            try:
                call()
            except CacheUnavailable as error:
                refusals.append(error)
        wait_until(lambda: named or refusals, PATIENCE, "something fails, or is told")
    for error in refusals:
        assert isinstance(error, NotPermitted)
        assert error.rights == (lost,)
        assert f"ACL SETUSER <user> {lost}" in str(error)
    assert set(named) <= {lost}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_right_that_is_given_back_is_noticed(redis_server, admin, namespace, protocol):
    limit(admin, acl_rule(namespace).replace("+subscribe", ""))
    with CoherentCache(as_user(redis_server, protocol), namespace=namespace, **OPTIONS) as cache:
        with pytest.raises(NotPermitted, match=r"lacks \+subscribe: ACL SETUSER <user> \+subscribe"):
            cache.wait_ready(PATIENCE)
        cache.set("a", 1)  # only the local tier needs it
        assert cache.get("a") == 1
        admin.execute_command("ACL", "SETUSER", "least", "+subscribe")
        wait_until(lambda: cache.state == "coherent", PATIENCE, "it subscribes")
        assert cache.wait_ready(PATIENCE)


def test_event_loops_are_told_the_same(redis_server, admin, namespace):
    limit(admin, acl_rule(namespace).replace("+xadd", ""))

    async def run():
        async with AsyncCoherentCache(as_user(redis_server), namespace=namespace, **OPTIONS) as cache:
            with pytest.raises(NotPermitted) as caught:
                await cache.set("a", 1)
            assert caught.value.rights == ("+xadd",)
            assert await cache.wait_ready(PATIENCE)
            limit(admin, acl_rule(namespace).replace("+subscribe", ""))
            admin.client_kill_filter(_type="pubsub")
            wait_until(lambda: cache.state != "coherent", PATIENCE, "the connection is lost")
            with pytest.raises(NotPermitted, match=r"lacks \+subscribe"):
                await cache.wait_ready(PATIENCE)

    asyncio.run(run())


def test_another_namespace_is_out_of_reach(redis_server, admin, namespace):
    limit(admin, acl_rule(namespace))
    with CoherentCache(as_user(redis_server), namespace=f"{namespace}2", local_enabled=False) as cache:
        for call in (lambda: cache.set("a", 1), lambda: cache.get("a")):
            with pytest.raises(NotPermitted, match=re.escape(f"~cc:{{{namespace}2/*")):
                call()


def test_the_rule_holds_what_the_scripts_run():
    texts = [file.read_text() for file in (files("coherent_cache.remote") / "scripts").iterdir()]
    run = {name.lower() for text in texts for name in re.findall(r"redis\.p?call\('([A-Z]+)'", text)}
    assert run == set(RUN_BY_SCRIPTS)
    assert set(acl_rule("x").split()[2:]) == {f"+{name}" for name in (*SENT, *RUN_BY_SCRIPTS)}


# -- passwords ---------------------------------------------------------------------------------------------------------


class Rotating(redis.CredentialProvider):
    """What a secret store would say at present."""

    password = "first"

    def get_credentials(self):
        return "least", self.password

    async def get_credentials_async(self):
        return self.get_credentials()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_new_connections_use_the_new_password(redis_server, admin, namespace, pair, protocol):
    provider = Rotating()
    rule = acl_rule(namespace)
    admin.execute_command("ACL", "SETUSER", "least", "reset", "on", ">first", *rule.split())
    source = redis.Redis.from_url(redis_server.url, credential_provider=provider, protocol=protocol)
    cache, peer = pair(source)
    events = []
    cache.on_event(events.append)
    cache.set("a", 1)
    assert cache.wait_ready(PATIENCE)
    assert peer.wait_ready(PATIENCE)

    # The usual way: both are valid for a while, nobody notices.
    admin.execute_command("ACL", "SETUSER", "least", ">second")
    provider.password = "second"
    admin.client_kill_filter(_type="pubsub")
    admin.execute_command("ACL", "SETUSER", "least", "<first")  # ends nothing: connections stay authenticated
    wait_until(lambda: cache.stats().resyncs > 1 and cache.state == "coherent", PATIENCE, "again coherent")
    everything(cache, peer)

    # The password is changed under the cache: it says so, and goes on as soon as it has the new one.
    events.clear()
    admin.execute_command("ACL", "SETUSER", "least", "resetpass", ">third")
    admin.execute_command("CLIENT", "KILL", "USER", "least")

    def refused():
        try:
            cache.get("never stored")
        except CacheUnavailable as error:
            return str(error)
        return None

    said = wait_until(refused, PATIENCE, "commands are refused")
    assert "cannot connect to Redis at" in said
    assert "password" in said
    assert not any(word in said for word in ("first", "second", "third"))
    told = wait_until(
        lambda: [event.cause for event in events if isinstance(event, SubscriberLost) and "password" in event.cause],
        PATIENCE, "the subscriber tells",
    )  # fmt: skip
    assert not any("second" in cause for cause in told)
    provider.password = "third"
    wait_until(lambda: cache.state == "coherent" and peer.state == "coherent", PATIENCE, "coherent with the new one")
    everything(cache, peer)


async def wait_refused(cache: AsyncCoherentCache) -> None:
    """Ask until the connection is found to have ended."""
    with contextlib.suppress(CacheUnavailable):
        while True:
            await cache.get("never stored")


def test_event_loops_use_the_new_password_too(redis_server, admin, namespace):
    provider = Rotating()
    admin.execute_command("ACL", "SETUSER", "least", "reset", "on", ">first", *acl_rule(namespace).split())
    source = redis.Redis.from_url(redis_server.url, credential_provider=provider)

    async def run():
        async with AsyncCoherentCache(source, namespace=namespace, **OPTIONS) as cache:
            await cache.set("a", 1)
            admin.execute_command("ACL", "SETUSER", "least", "resetpass", ">third")
            admin.execute_command("CLIENT", "KILL", "USER", "least")
            await wait_refused(cache)
            provider.password = "third"
            assert await cache.wait_ready(PATIENCE)
            assert await cache.get("a") == 1

    asyncio.run(run())


# -- TLS and unix sockets ----------------------------------------------------------------------------------------------


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates():
    """Make an authority of our own, and certificates of a server and a client that it has signed."""
    place = Path(tempfile.mkdtemp(prefix="coherent-cache-tls-"))
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "stranger"):
        openssl("req", "-x509", *new, "-days", "2", "-subj", f"/CN=Test {authority}",
                "-keyout", place / f"{authority}.key", "-out", place / f"{authority}.crt")  # fmt: skip
    (place / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name, authority in (("server", "ca"), ("client", "ca"), ("impostor", "stranger")):
        openssl("req", *new, "-subj", f"/CN={name}", "-keyout", place / f"{name}.key", "-out", place / f"{name}.csr")
        openssl("x509", "-req", "-in", place / f"{name}.csr", "-days", "2", "-out", place / f"{name}.crt",
                "-CA", place / f"{authority}.crt", "-CAkey", place / f"{authority}.key", "-CAcreateserial",
                "-extfile", place / "names")  # fmt: skip
    place.chmod(0o755)
    for file in place.iterdir():
        file.chmod(0o644)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def secured(certificates, server_factory, redis_server):
    """Give a server with a TLS port that wants client certificates, and a unix socket beside it."""
    if redis_server.kind != "process":
        pytest.skip("needs a redis-server with TLS, with our files")
    place = Path(tempfile.mkdtemp(prefix="ccs-"))
    port = free_port()
    server = server_factory(
        config={
            "tls-port": str(port), "tls-cert-file": str(certificates / "server.crt"),
            "tls-key-file": str(certificates / "server.key"), "tls-ca-cert-file": str(certificates / "ca.crt"),
            "unixsocket": str(place / "s"),
        }
    )  # fmt: skip
    assert isinstance(server, OwnedServer)
    yield port, place / "s"
    server.stop()
    shutil.rmtree(place)


def tls_options(certificates: Path, name: str = "client") -> dict[str, str]:
    return {
        "ssl_ca_certs": str(certificates / "ca.crt"),
        "ssl_certfile": str(certificates / f"{name}.crt"),
        "ssl_keyfile": str(certificates / f"{name}.key"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", ["url", "client"])
def test_tls_with_client_certificates(certificates, secured, pair, namespace, protocol, form):
    port, _ = secured
    options = tls_options(certificates)
    source = f"rediss://127.0.0.1:{port}/0?protocol={protocol}&" + "&".join(f"{k}={v}" for k, v in options.items())
    if form == "client":
        source = redis.Redis(host="127.0.0.1", port=port, ssl=True, protocol=protocol, **options)
    everything(*pair(source))

    async def run():
        async with AsyncCoherentCache(source, namespace=namespace, **OPTIONS) as cache:
            assert await cache.wait_ready(PATIENCE)
            await cache.set("a", 1)
            assert await cache.get("a") == 1

    asyncio.run(run())


@pytest.mark.parametrize("what", ["no certificate", "a stranger's certificate", "an unknown authority", "no TLS"])
def test_what_tls_refuses_is_told(certificates, secured, pair, what):
    port, _ = secured
    options = {
        "no certificate": {"ssl_ca_certs": str(certificates / "ca.crt")},
        "a stranger's certificate": tls_options(certificates, "impostor"),
        "an unknown authority": tls_options(certificates) | {"ssl_ca_certs": str(certificates / "stranger.crt")},
        "no TLS": {},
    }[what]
    source = redis.Redis(host="127.0.0.1", port=port, ssl=what != "no TLS", **options)
    cache, _ = pair(source)
    events = []
    cache.on_event(events.append)
    for call in (lambda: cache.get("a"), lambda: cache.set("a", 1)):
        with pytest.raises(CacheUnavailable, match=r"cannot connect to Redis at 127\.0\.0\.1") as caught:
            call()
        assert not caught.value.maybe_applied
    told = wait_until(lambda: [event for event in events if isinstance(event, SubscriberLost)], PATIENCE, "it tells")
    assert "cannot connect" in told[0].cause


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unix_sockets(secured, pair, protocol):
    _, path = secured
    everything(*pair(f"unix://{path}?db=2&protocol={protocol}"))
