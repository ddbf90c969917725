"""The Hugging Face Hub, and other addresses: asked once and not for long, and what it does not give is said as what it is.

What a user names is a folder, or else the id of a repository. Whoever opens it looks for the folder; here it is told whether the text can
be an id, whether the Hub may be asked, can be reached and has it, and what to do where one of these fails. What the local cache has is
given whether the Hub answers or not.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fewstep.errors import UserError, first_line

LIMIT = 5.0  # seconds in which the first answer has to come
REMEMBERED = 60.0  # seconds in which a Hub that could not be reached is not asked again
SETTINGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")  # in which users forbid to ask

Kind = Literal["model", "dataset"]
WORDS: dict[Kind, str] = {"model": "model", "dataset": "data set"}

T = TypeVar("T")

_unreachable: dict[str, tuple[float, str]] = {}  # the Hub's address: when it was asked, and what came of it


class NotHad(UserError):
    """Something of the Hub, or at another address, that cannot be had here and now; the message says why, and the way out."""


def is_id(text: str) -> bool:
    """Whether `text` can be the id of a repository, ``owner/name``; a path such as ``./name`` cannot."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` gives, or raises; TimeoutError where that takes longer than `seconds`.

    A library's own limit does not cover the look-up of a name, or an answer that comes a byte at a time; this one does. What is given up
    goes on in a thread that keeps no process alive.
    """
    outcome: list[tuple[bool, Any]] = []

    def work() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:  # raised again below, for whoever waits
            outcome.append((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer in {seconds:g} seconds")
    good, found = outcome[0]
    if not good:
        raise found
    return found


def fetched(subject: str, repository: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The local copy of those files of the model `repository` that `patterns` name, from the Hub or the cache.

    `subject` begins the message of NotHad, which is raised where neither has it.
    """
    from huggingface_hub import snapshot_download

    why = _trouble(repository, "model", revision)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns), local_files_only=why is not None))
    except Exception as error:  # the Hub's, its client's and the disk's
        why = why or f"the Hub's copy cannot be fetched ({first_line(error)}); try again, or {_elsewhere(repository, 'model')}"
        raise NotHad(f"{subject}: {_neither('model')}, and {why}") from error


@contextlib.contextmanager
def data_set(subject: str, repository: str) -> Iterator[None]:
    """Inside, `datasets` may open `repository`: from the Hub where that answers, and else from its cache alone.

    Raises NotHad, with `subject` before it, where the Hub does not give it and the cache has not got it.
    """
    why = _trouble(repository, "dataset", None)
    if why is None:
        yield
        return
    with _cache_only():
        try:
            yield
        except Exception as error:  # the library raises many kinds
            absent = isinstance(error, ConnectionError | FileNotFoundError) or error.__class__.__name__ == "DatasetNotFoundError"
            found = "" if absent else f" ({first_line(error)})"
            raise NotHad(f"{subject}: {_neither('dataset')}{found}, and {why}") from error


def opened(subject: str, url: str, timeout: float, instead: str) -> Any:
    """The answer at `url`, to be read from; each part of it may take `timeout` seconds, and the first `LIMIT` at most.

    Raises NotHad where there is none, with `subject` before it and `instead` as the way out.
    """
    try:
        return within(LIMIT, lambda: urlopen(url, timeout=timeout))
    except Exception as error:  # of the network, the server and the library
        raise NotHad(f"{subject} cannot be downloaded ({_told(error)}); {instead}") from error


def check_address(subject: str, url: str) -> None:
    """Raise NotHad where no server answers at `url`, of http or https, or answers that there is nothing; other kinds are not tried."""
    if not url.startswith(("http://", "https://")):
        return
    try:
        within(LIMIT, lambda: urlopen(Request(url, method="HEAD"), timeout=LIMIT).close())
    except HTTPError as error:
        if error.code in (404, 410):
            raise NotHad(f"{subject}, where the server has nothing (it answers {error.code}); mend the address") from error
    except Exception as error:  # of the network and the library
        raise NotHad(f"{subject}, which cannot be reached ({_told(error)}); download the shards elsewhere and give their folder") from error


def _trouble(repository: str, kind: Kind, revision: str | None) -> str | None:
    """Why the Hub does not give `repository`, and the way out; None where it does. It is asked once, within `LIMIT`."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    elsewhere, word = _elsewhere(repository, kind), WORDS[kind]
    if setting := _forbidden(kind):
        return f"{setting} forbids to ask the Hub: unset it, or {elsewhere}"
    asked, told = _unreachable.get(constants.ENDPOINT, (-REMEMBERED, ""))
    if time.monotonic() - asked < REMEMBERED:
        return f"{constants.ENDPOINT} cannot be reached ({told}): {elsewhere}"
    api, page = huggingface_hub.HfApi(), f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    try:
        within(LIMIT, lambda: api.repo_info(repository, repo_type=kind, revision=revision, timeout=LIMIT))
    except errors.GatedRepoError:
        return f"the Hub gives it only to those who have agreed to its terms: do so at {page}, and log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        return f"the Hub's {word} {repository} has no revision {revision!r}: see {page} for those that it has"
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
            return f"the Hub has no {word} of that name: mend it; or, if it is private, log in with `hf auth login`"
        if status in (401, 403):
            return f"the Hub does not give it to you (it answers {status}): log in with `hf auth login`, as somebody who may see {page}"
        return f"the Hub answers {status or first_line(error)}: try again later, or {elsewhere}"
    except Exception as error:  # of the client, whichever this version has, and of the network
        told = _told(error)
        _unreachable[constants.ENDPOINT] = (time.monotonic(), told)
        return f"{constants.ENDPOINT} cannot be reached ({told}): {elsewhere}"
    return None


def _forbidden(kind: Kind) -> str | None:
    """The setting that forbids to ask the Hub, if one does."""
    from huggingface_hub import constants

    forbidden = bool(constants.HF_HUB_OFFLINE)
    if kind == "dataset":
        import datasets

        forbidden = bool(datasets.config.HF_HUB_OFFLINE)
    return next((name for name in SETTINGS if os.environ.get(name)), SETTINGS[0]) if forbidden else None


@contextlib.contextmanager
def _cache_only() -> Iterator[None]:
    """Inside, neither the Hub's client nor `datasets` asks the network: the latter would try for half a minute."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _neither(kind: Kind) -> str:
    return f"there is no such folder, the local cache of the Hub has no such {WORDS[kind]}"


def _elsewhere(repository: str, kind: Kind) -> str:
    """How to come by `repository` without asking the Hub from here."""
    of_data = " --repo-type dataset" if kind == "dataset" else ""
    return (
        f"fetch it where there is a network (`hf download {repository}{of_data} --local-dir FOLDER`) and give that folder, or bring the "
        "cache of that machine and set HF_HOME to it"
    )


def _told(error: BaseException) -> str:
    """What a library says of a network that fails, without the layers around it."""
    reason = getattr(error, "reason", None)
    return first_line(reason if isinstance(reason, BaseException) else error).rstrip(".")[:200]
