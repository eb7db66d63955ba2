"""Values <-> bytes: what a value becomes inside an envelope, and what may come back out of one.

This package is pure: no I/O of its own, no clock, no state. (One exception is forced by its subject: to rebuild a zone
of :mod:`zoneinfo`, Python reads its table of time zones.)

Which codec wrote a value is one byte of its envelope:

====  ===========  ==========================================================================================
code  serializer   takes
====  ===========  ==========================================================================================
1     ``msgpack``  the default. None, bool, int of any size, float, str, bytes, list, tuple, dict (any key that is
                   hashable and of these types), set, frozenset, datetime, date, time, timedelta, Decimal, UUID
2     ``json``     None, bool, int, finite float, str, list, dict with str keys
3     ``pickle``   anything that pickles; opt-in, because who can write to Redis can then execute code here
255   custom       whatever an object with ``dumps`` and ``loads`` takes
====  ===========  ==========================================================================================

**Exactness.** ``msgpack`` and ``json`` give back the same value *of the same type*, or refuse the value before anything
is sent. So subclasses (an enum, ``OrderedDict``, a named tuple), ``bytearray``, dataclasses and other objects are
refused rather than changed silently; so are strings with lone surrogates, structures that contain themselves, and
structures of more than :data:`MAX_NESTING` containers inside one another. Not kept, because it is not a part of a
value's equality: that one object occurred twice in a structure, the order of a set, and ``UUID.is_safe``.

**Mixed fleets.** An instance reads what it writes, and also what the other of ``msgpack`` and ``json`` wrote, so that
a rolling change between these two keeps the entries readable. Pickled bytes are unpickled by an instance whose own
serializer is ``pickle``, never by another. All custom serializers have the one code 255: who changes the format of a
custom serializer changes the namespace too.
"""

from coherent_cache.serializers.codec import (
    CODE_CUSTOM,
    CODE_JSON,
    CODE_MSGPACK,
    CODE_PICKLE,
    Codec,
    Serializer,
    make_codec,
)
from coherent_cache.serializers.exact import MAX_NESTING
from coherent_cache.serializers.immutable import IMMUTABLE_SCALARS, is_immutable

__all__ = [
    "CODE_CUSTOM",
    "CODE_JSON",
    "CODE_MSGPACK",
    "CODE_PICKLE",
    "IMMUTABLE_SCALARS",
    "MAX_NESTING",
    "Codec",
    "Serializer",
    "is_immutable",
    "make_codec",
]
