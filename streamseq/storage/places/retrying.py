"""Trying again: what a network or a server fails at for a while is done once more, after pauses that grow."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from streamseq.core.errors import StoreError

T = TypeVar("T")

#: How long something is tried, in seconds; the environment may say another number.
RETRY_SECONDS = 120.0
RETRY_VARIABLE = "STREAMSEQ_RETRY_SECONDS"

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
# What servers say that are busy, or that cannot decide between two requests just now.
_BUSY = {408, 409, 425, 429}
# Of an error without a status: that of S3 as s3fs translates it (EBUSY, EREMOTEIO), and those of sockets.
_PASSING = {
    errno.EBUSY,
    errno.EREMOTEIO,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
}
# Parts of the names of what HTTP libraries raise when a connection fails; they have no base in common.
_NAMES = (
    "Timeout",
    "Connect",
    "Disconnect",
    "Payload",
    "Incomplete",
    "ResponseParser",
    "HTTPClientError",
    "ServiceRe",
    "Checksum",
)
_LIBRARIES = ("aiohttp", "botocore", "urllib3", "requests", "azure", "http", "aiobotocore", "httpx", "httpcore")


class TruncatedError(Exception):
    """Fewer or more bytes came than there are."""


class ExhaustedError(StoreError):
    """Something failed for a while until its time was up: whether a server did what it was asked to is not known."""


def retry_seconds() -> float:
    """How long something is tried.

    Raises:
        ValueError: The environment variable is no number of seconds.
    """
    text = os.environ.get(RETRY_VARIABLE)
    if text is None:
        return RETRY_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{RETRY_VARIABLE} is a number of seconds, got {text!r}")
    return seconds


def retrying(what: str, action: Callable[[], T], seconds: float) -> T:
    """Do something that a network or a server can fail at, again where trying again can help.

    The pauses double, from 0.1 to 10 seconds, each shortened at random by up to a half, so that those who failed
    together do not come back together.

    Args:
        what: What is done, for the error.
        action: Does it; it may be called several times.
        seconds: No further try is begun after so many.

    Raises:
        FileNotFoundError, FileExistsError: As `action` raised it.
        ExhaustedError: The time is up.
        StoreError: Trying again would not help: it is not allowed, or the request is wrong.
        OSError: The disk of this machine failed.
    """
    begin, tries, pause = time.monotonic(), 0, _FIRST_PAUSE
    while True:
        tries += 1
        try:
            return action()
        except (FileNotFoundError, FileExistsError, StoreError, TypeError, AttributeError, AssertionError):
            raise
        except Exception as error:
            if status_of(error) == 412:
                raise FileExistsError(errno.EEXIST, reason_of(error)) from error
            if not is_passing(error):
                if _is_of_this_machine(error):
                    raise
                hint = "check the credentials and what they allow" if _is_refusal(error) else "see the reason"
                raise StoreError(f"{what} failed with {reason_of(error)}: {hint}") from error
            passed = time.monotonic() - begin
            wait = pause * random.uniform(0.5, 1)
            if passed + wait > seconds:
                raise ExhaustedError(
                    f"{what} failed {tries} times in {passed:.1f} seconds, the last time with {reason_of(error)}: "
                    f"check the network and the server, or allow more time with {RETRY_VARIABLE}"
                ) from error
        time.sleep(wait)
        pause = min(_LONGEST_PAUSE, pause * 2)


def is_passing(error: BaseException) -> bool:
    """Whether an error of a network or a server may pass: a dropped connection, a timeout, a busy or broken server.

    Example:
        >>> is_passing(ConnectionResetError()), is_passing(PermissionError())
        (True, False)
    """
    if isinstance(error, TruncatedError):
        return True
    # The outermost that says anything: an answer that broke off has a cause with the status of a wrong request.
    for each in _chain(error):
        status = _status_of_one(each)
        if status is not None:
            return status >= 500 or status in _BUSY
        if isinstance(each, (ConnectionError, TimeoutError)):
            return True
        if isinstance(each, OSError) and each.errno in _PASSING:
            return True
        library = type(each).__module__.partition(".")[0]
        if library in _LIBRARIES and any(name in type(each).__name__ for name in _NAMES):
            return True
    return False


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error is about, whichever library raised it; None where there is none."""
    return next((found for each in _chain(error) if (found := _status_of_one(each)) is not None), None)


def _status_of_one(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = next((getattr(error, name) for name in ("status", "status_code", "code") if hasattr(error, name)), None)
    return found if isinstance(found, int) and 100 <= found < 600 else None


def reason_of(error: BaseException) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    each: BaseException | None = error
    for _ in range(8):
        if each is None:
            return
        yield each
        each = each.__cause__


def _is_of_this_machine(error: BaseException) -> bool:
    """Whether it is about a file of this machine: those have names that are paths here."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, PermissionError) or status_of(error) in (401, 403) or "Credentials" in type(error).__name__
