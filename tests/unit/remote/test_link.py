"""The subscriber's connection over a socket pair, and how long its thread rests."""

import socket
from types import SimpleNamespace

import pytest

from coherent_cache.remote import link as links
from coherent_cache.remote.link import Item, SocketLink
from coherent_cache.remote.subscriber import ECHO_PAUSE, ECHOES_PER_PAUSE, LONGEST_ECHO_PAUSE, _echo_pause

MESSAGE = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\ndata\r\n"
ECHO = Item("message", b"c", b"data")
FOR_EVER = 1e6


@pytest.fixture
def far(monkeypatch):
    """The server's end of a link, with the link as ``near``."""
    monkeypatch.setattr(links, "server_of", lambda _: "A")
    near, end = socket.socketpair()
    link = SocketLink(SimpleNamespace(disconnect=near.close), near)
    yield SimpleNamespace(near=link, send=end.sendall)
    link.close()
    end.close()


def test_what_has_come_is_received(far):
    far.send(MESSAGE * 2)
    received = far.near.receive(FOR_EVER)
    assert received == [ECHO, ECHO]
    assert {type(item) for item in received} == {Item}


def test_what_is_likely_is_received_without_asking_first(far):
    far.send(MESSAGE)
    far.near.wake()
    assert far.near.receive(0.0, likely=True) == [ECHO]


def test_if_nothing_has_come_what_was_likely_is_not_waited_for(far):
    assert far.near.receive(FOR_EVER, likely=True) == []


def test_the_pause_after_echoes_grows_while_there_are_many_of_them():
    pauses = [0.0]
    for _ in range(6):
        pauses.append(_echo_pause([ECHO] * ECHOES_PER_PAUSE, pauses[-1], hurried=False))
    assert pauses == [0.0, *(ECHO_PAUSE * factor for factor in (1, 2, 4, 8, 8, 8))]
    assert pauses[-1] == LONGEST_ECHO_PAUSE


@pytest.mark.parametrize(
    ("items", "hurried", "pause"),
    [
        ([ECHO], False, ECHO_PAUSE),
        ([ECHO] * (ECHOES_PER_PAUSE - 1), False, ECHO_PAUSE),
        ([ECHO] * ECHOES_PER_PAUSE, True, 0.0),
        ([], False, 0.0),
        ([ECHO, Item("reply", b"", b"")], False, 0.0),
    ],
    ids=["one", "few", "a peer's among them", "none", "an answer last"],
)
def test_a_long_pause_ends(items, hurried, pause):
    assert _echo_pause(items, LONGEST_ECHO_PAUSE, hurried=hurried) == pause
