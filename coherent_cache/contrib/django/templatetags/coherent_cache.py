"""``{% coherent_cache %}``: a fragment of a page that is cached with tags."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.utils import make_template_fragment_key
from django.template import Context, Library, Node, NodeList, TemplateSyntaxError
from django.template.base import FilterExpression, Parser, Token

from coherent_cache.contrib.django.backend import CoherentCacheBackend

register = Library()

NAME = "coherent_cache"
END = "endcoherent_cache"


@register.tag(NAME)
def coherent_cache(parser: Parser, token: Token) -> Node:
    """Cache a fragment for a number of seconds, with tags by which it can be invalidated.

    ::

        {% load coherent_cache %}
        {% coherent_cache 300 product product.pk request.LANGUAGE_CODE tags=product.cache_tags %}
            ... whatever takes its time ...
        {% endcoherent_cache %}

        {% coherent_cache 300 sidebar tags="products,news" using="pages" %} ... {% endcoherent_cache %}

    The first argument is the seconds (None: for ever; 0: not at all), the second the fragment's name, the others are
    what its content varies on. ``tags`` is one str with commas between the tags, or a collection of str. ``using`` is
    the alias of the cache; else it is ``template_fragments``, if there is that alias, or ``default``. The key is that
    of Django's own tag: ``make_template_fragment_key(name, vary_on)``.

    A fragment is rendered once in the whole fleet. One that is rendered while its tags are invalidated is shown but
    not stored.
    """
    words = token.split_contents()[1:]
    options: dict[str, FilterExpression] = {}
    while words and words[-1].partition("=")[0] in ("tags", "using") and "=" in words[-1]:
        option, _, value = words.pop().partition("=")
        options[option] = parser.compile_filter(value)
    if len(words) < 2:
        raise TemplateSyntaxError(f"{NAME!r} needs the seconds and the name of the fragment")
    nodes = parser.parse((END,))
    parser.delete_first_token()
    seconds, name, *vary_on = words
    return FragmentNode(
        nodes,
        seconds=parser.compile_filter(seconds),
        name=name,
        vary_on=[parser.compile_filter(word) for word in vary_on],
        tags=options.get("tags"),
        using=options.get("using"),
    )


class FragmentNode(Node):
    """A cached fragment in a template."""

    def __init__(
        self,
        nodelist: NodeList,
        *,
        seconds: FilterExpression,
        name: str,
        vary_on: list[FilterExpression],
        tags: FilterExpression | None,
        using: FilterExpression | None,
    ) -> None:
        """Take the parts of the tag."""
        self.nodelist = nodelist
        self._seconds = seconds
        self._name = name
        self._vary_on = vary_on
        self._tags = tags
        self._using = using

    def render(self, context: Context) -> str:
        """Return the fragment: the cached one, or a new one."""
        cache = _cache(None if self._using is None else self._using.resolve(context))
        key = make_template_fragment_key(self._name, [each.resolve(context) for each in self._vary_on])
        timeout = _timeout(self._seconds.resolve(context))
        tags = _names(None if self._tags is None else self._tags.resolve(context))
        # Stored as a plain str, which every serializer takes; the list of nodes around it marks it as safe again.
        text: str = cache.get_or_set(key, lambda: str.__str__(self.nodelist.render(context)), timeout, tags=tags)
        return text


def _timeout(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise TemplateSyntaxError(f"{NAME!r} needs a number of seconds or None, not {value!r}") from None


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [str.__str__(name.strip()) for name in value.split(",") if name.strip()]
    if not isinstance(value, Iterable):
        raise TemplateSyntaxError(f"tags must be one str or a collection of them, not {value!r}")
    return [str.__str__(name) if isinstance(name, str) else name for name in value]


def _cache(alias: Any) -> CoherentCacheBackend:
    try:
        cache = caches[alias or "template_fragments"]
    except InvalidCacheBackendError:
        if alias:
            raise TemplateSyntaxError(f"there is no cache {alias!r}") from None
        cache = caches["default"]
    if not isinstance(cache, CoherentCacheBackend):
        raise TemplateSyntaxError(f"{NAME!r} needs a CoherentCacheBackend, not {type(cache).__qualname__}")
    return cache
