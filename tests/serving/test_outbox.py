"""The answers of one batch, gathered and sent together."""

from __future__ import annotations

import pytest

from serving.outbox import MOST, Outbox


def test_what_is_put_while_it_is_open_leaves_together_and_in_order() -> None:
    """And what is put at any other time leaves at once."""
    outbox, sent = Outbox(), list[bytes]()
    outbox.put(sent.append, b"before")
    assert sent == [b"before"]
    with outbox:
        outbox.put(sent.append, b"1")
        outbox.put(sent.append, b"2")
        assert sent == [b"before"]
    outbox.put(sent.append, b"after")
    assert sent == [b"before", b"1", b"2", b"after"]


def test_what_was_put_leaves_although_the_rest_fails() -> None:
    """An answer that is encoded is not lost with another one."""
    outbox, sent = Outbox(), list[bytes]()

    def deliver() -> None:
        with outbox:
            outbox.put(sent.append, b"1")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        deliver()
    assert sent == [b"1"]


def test_the_first_of_many_do_not_wait_for_the_last() -> None:
    """So many leave as soon as they are there."""
    outbox, sent = Outbox(), list[bytes]()
    with outbox:
        for _ in range(MOST + 1):
            outbox.put(sent.append, b"answer")
        assert len(sent) == MOST
    assert len(sent) == MOST + 1


def test_what_a_send_brings_about_is_sent_after_it() -> None:
    """A connection's next request may be answered, from the cache, while its last answer leaves."""
    outbox, sent = Outbox(), list[bytes]()

    def send(data: bytes) -> None:
        sent.append(data)
        if data == b"1":
            outbox.put(sent.append, b"next")

    with outbox:
        outbox.put(send, b"1")
    assert sent == [b"1", b"next"]


def test_an_answer_that_cannot_be_sent_keeps_none_from_being_sent() -> None:
    """One connection is in a strange state; the neighbours hear theirs."""
    outbox, sent = Outbox(), list[bytes]()

    def broken(data: bytes) -> None:
        raise RuntimeError("closed")

    with outbox:
        for send in (sent.append, broken, sent.append):
            outbox.put(send, b"1")
    assert sent == [b"1", b"1"]
