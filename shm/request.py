"""Questions and answers over two channels: msgpack values, told apart by a number."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

from shm.errors import ChannelFull, ChannelTimeout, PeerGone, RingError, ShmError
from shm.receiver import Receiver
from shm.sender import Sender

OVERHEAD = 32  # bytes of an answer beside its text, at most


class RequestFailed(ShmError):
    """The other side answered that it could not; the text is its reason."""


class Requester:
    """Asks, one question at a time: `questions` carries them, `answers` what comes back."""

    def __init__(self, questions: Sender, answers: Receiver) -> None:
        self._questions = questions
        self._answers = answers
        # From the clock, so that answers to a process that died before are never taken for this one's.
        self._numbers = itertools.count(time.monotonic_ns())

    def call(self, question: Any, timeout: float | None = None) -> Any:
        """Return the answer. Raises RequestFailed, ChannelTimeout (a later answer is dropped), PeerGone..."""
        deadline = None if timeout is None else time.monotonic() + timeout
        number = next(self._numbers)
        self._questions.send_object([number, question], timeout)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            answer = self._answers.recv_object(left)
            match answer:
                case [int(found), bool(fine), value]:
                    if found != number:
                        continue
                    if fine:
                        return value
                    raise RequestFailed(f"channel {self._questions.name}: {value}")
                case _:
                    raise RingError(self._answers.name, "answer")


class Replier:
    """Answers: what comes by an mpsc's lane N goes to `answers[N]`, what comes by an spsc to `answers`."""

    def __init__(self, questions: Receiver, answers: Sender | Mapping[int, Sender]) -> None:
        self._questions = questions
        self._answers = answers

    def serve_one(self, handler: Callable[[Any], Any], timeout: float | None = None) -> None:
        """Wait for a question and send what `handler` makes of it; an exception becomes a RequestFailed over there.

        One who can't be answered (gone, reads nothing for a second, the answer too long) goes without. Raises
        ChannelTimeout, ChannelClosed, PeerGone, RingError.
        """
        message = self._questions.recv_object(timeout)
        sender = self._answers if isinstance(self._answers, Sender) else self._answers.get(self._questions.sender_lane)
        match message:
            case [int(number), question] if sender is not None:
                pass
            case _:
                raise RingError(self._questions.name, "question", self._questions.sender_lane)
        try:
            answer = [number, True, handler(question)]
        except Exception as error:
            answer = [number, False, f"{type(error).__name__}: {error}"]
        try:
            sender.send_object(answer, timeout=1.0)
        except (ChannelFull, PeerGone):
            pass
        except (ShmError, TypeError, ValueError, OverflowError) as error:
            self._refuse(sender, number, error)

    def serve(self, handler: Callable[[Any], Any]) -> None:
        """Answer until all who asked are gone or closed."""
        from shm.errors import ChannelClosed

        while True:
            try:
                self.serve_one(handler)
            except (ChannelClosed, PeerGone):
                return

    @staticmethod
    def _refuse(sender: Sender, number: int, error: Exception) -> None:
        try:
            room = max(0, sender.info.max_message - OVERHEAD)
            text = f"no answer could be sent: {error}".encode()[:room].decode(errors="ignore")
            sender.send_object([number, False, text], timeout=1.0)
        except (ShmError, ChannelTimeout):
            return
