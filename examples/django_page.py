"""A Django page whose fragments are cached with tags, served by two processes. One file is the whole project.

    python examples/django_page.py [--seconds 60, and open the addresses that it prints]

The page lists products. Each line is a fragment with the tag of its product, and the sum has the tag of all of them. A
change of a product, through either process, invalidates its tags: both processes show the new price, and only the
fragments that show it are rendered anew, once for both.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django
from django.conf import settings
from support import CACHE_OPTIONS, answers, ask, check, free_port, make_database, parser, running, say, wait_until

from coherent_cache import CoherentCache

NAMESPACE = "page"

PAGE = """{% load coherent_cache %}<!doctype html><title>Shop</title>
{% for line in lines %}{% coherent_cache 300 line line.id tags=line.tags %}{% with product=line.product %}
<p>{{ product.name }}: {{ product.price }} <small>read and rendered by {{ pid }}</small></p>
{% endwith %}{% endcoherent_cache %}{% endfor %}
{% coherent_cache 300 sum tags="products" %}
<p>Sum: {{ sum }} <small>added up by {{ pid }}</small></p>
{% endcoherent_cache %}
"""


def make_application():
    """Return the project as a WSGI application."""
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        CACHES={
            "default": {
                "BACKEND": "coherent_cache.contrib.django.CoherentCacheBackend",
                "LOCATION": os.environ["EXAMPLE_URL"],
                "OPTIONS": {"namespace": NAMESPACE, **CACHE_OPTIONS},
            }
        },
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["EXAMPLE_DATABASE"]}},
        INSTALLED_APPS=["coherent_cache.contrib.django"],
        ROOT_URLCONF="shop",
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    )
    django.setup()

    from django.core.cache import cache  # noqa: PLC0415 - what is below needs the settings
    from django.core.wsgi import get_wsgi_application  # noqa: PLC0415
    from django.db import models  # noqa: PLC0415
    from django.http import HttpResponse, JsonResponse  # noqa: PLC0415
    from django.template import engines  # noqa: PLC0415
    from django.urls import path  # noqa: PLC0415

    class Product(models.Model):
        name = models.TextField()
        price = models.IntegerField()

        class Meta:
            app_label = "shop"
            db_table = "product"

        def __str__(self):
            return self.name

    class Line:
        """A product that is read from the database when its fragment is rendered, and only then."""

        def __init__(self, number):
            self.id = number
            self.tags = [f"product:{number}"]

        def product(self):
            return Product.objects.get(pk=self.id)

    def index(request):
        page = engines["django"].from_string(PAGE)
        lines = [Line(number) for number in (1, 2, 3)]
        return HttpResponse(page.render({"lines": lines, "sum": add_up, "pid": os.getpid()}))

    def add_up():
        return Product.objects.aggregate(sum=models.Sum("price"))["sum"]

    def change(request, number):
        Product.objects.filter(pk=number).update(price=json.loads(request.body)["price"])
        # Waits until no process shows the old price any more; without `wait` it takes the time of a message.
        done = cache.invalidate_tags(f"product:{number}", "products", wait=10)
        return JsonResponse({"changed by": os.getpid(), "confirmed": done.confirmed})

    sys.modules["shop"] = type(sys)("shop")
    sys.modules["shop"].urlpatterns = [path("", index), path("products/<int:number>", change)]
    return get_wsgi_application()


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


def serve(port):
    """Serve until told to end. In real life: gunicorn, with any number of workers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with make_server("127.0.0.1", port, make_application(), handler_class=Quiet) as server:
        server.serve_forever()


def main():
    options = parser(__doc__, seconds=1)
    options.add_argument("--serve", type=int, metavar="PORT", help="what the two servers are started with")
    arguments = options.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve)
        return
    ports = [free_port() for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "shop.sqlite3"
        make_database(database)
        # An embedded server is started by the first cache that names it, and lives as long as this process.
        with CoherentCache(arguments.url, namespace=NAMESPACE, **CACHE_OPTIONS) as own:
            own.clear()
            environment = os.environ | {"EXAMPLE_URL": arguments.url, "EXAMPLE_DATABASE": str(database)}
            with running(*([__file__, "--serve", str(port)] for port in ports), environment=environment):
                play([f"http://127.0.0.1:{port}/" for port in ports], own.server, arguments.seconds)
    say("coherent")


def paragraphs(address):
    return [line for line in ask("GET", address).splitlines() if line.startswith("<p>")]


def play(addresses, server, seconds):
    for address in addresses:
        wait_until(lambda address=address: answers(address), "the servers answer")
    say(f"two servers with one cache at {server}: {' '.join(addresses)}")
    one, other = addresses
    shown = paragraphs(one)
    for line in shown:
        say(f"    {line}")
    check("the other server shows the same fragments, and has rendered none of them", paragraphs(other), shown)

    end, price, rounds = time.monotonic() + seconds, 200, 0
    while rounds < 2 or time.monotonic() < end:
        price += 1
        ask("POST", f"{addresses[rounds % 2]}products/2", {"price": price})
        now = paragraphs(addresses[(rounds + 1) % 2])
        if (f"Pear: {price} " not in now[1]) or (f"Sum: {400 + price} " not in now[3]) or now[::2] != shown[::2]:
            raise SystemExit(f"NOT COHERENT: the price is {price}, and the other server shows {now}")
        if paragraphs(addresses[rounds % 2]) != now:
            raise SystemExit("NOT COHERENT: the servers show different pages")
        rounds += 1
    for line in now:
        say(f"    {line}")
    check(
        f"each of {rounds} changes through one server was shown by the other, and nothing else rendered anew",
        True,
        True,
    )


if __name__ == "__main__":
    main()
