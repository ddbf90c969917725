"""Fetch from the Hugging Face Hub and from other addresses, with short time limits and errors that say what is wrong and what to do.

Users name a folder or the id of a repository. The caller looks for the folder; this module checks whether the text can be an id, whether
the Hub may be asked, can be reached and has the repository, and says what to do where one of these fails. What the local cache holds is
returned even if the Hub does not answer.
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

LIMIT = 5.0  # seconds within which the first answer must arrive
REMEMBERED = 60.0  # seconds during which a Hub that could not be reached is not asked again
ASKING = ("token", "cache_dir", "local_files_only", "force_download")  # options of `fetched`, which are huggingface_hub's own
SETTINGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")  # environment variables by which users forbid asking the Hub

Kind = Literal["model", "dataset"]
WORDS: dict[Kind, str] = {"model": "model", "dataset": "data set"}

T = TypeVar("T")

_unreachable: dict[str, tuple[float, str]] = {}  # by the address of a Hub that could not be reached: when it was asked, and the error


class NotHad(UserError):
    """Something on the Hub or at another address cannot be fetched at present; the message says why, and what to do."""


def is_id(text: str) -> bool:
    """Return whether `text` can be the id of a repository on the Hub, ``owner/name``; a path such as ``./name`` cannot."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def parted(model: str) -> tuple[str, str | None]:
    """Return (id, revision) of a `model` given as ``owner/name@revision``, a branch, tag or commit; (`model`, None) for anything else."""
    name, _, revision = model.rpartition("@")
    return (name, revision) if revision and is_id(name) else (model, None)


def is_model(text: str) -> bool:
    """Return whether `text` can name a model on the Hub: ``owner/name``, or ``owner/name@revision``."""
    return is_id(parted(text)[0])


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises; raise TimeoutError if it takes longer than `seconds`.

    Unlike the time limits of libraries, this one also covers the look-up of a host name and an answer that arrives byte by byte. After a
    timeout `call` continues in a daemon thread, which does not keep the process alive.
    """
    outcome: list[tuple[bool, Any]] = []

    def work() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:  # raised again below, in the thread that waits
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


def fetched(subject: str, repository: str, patterns: Sequence[str], revision: str | None = None, **asking: Any) -> Path:
    """Return the local folder with those files of the model `repository` that match `patterns`, fetched from the Hub or found in the cache.

    `repository` may name a revision, ``owner/name@revision``, which holds where `revision` is None. `asking` holds those of the options
    `ASKING` that a user has given, by the meaning that ``huggingface_hub.snapshot_download`` gives them. Raises NotHad, with `subject` at
    the start of its message, where neither the Hub nor the cache has the files.
    """
    from huggingface_hub import snapshot_download

    repository, own = parted(repository)
    revision = own if revision is None else revision
    if asking.pop("local_files_only", False):
        why: str | None = f"local_files_only forbids to ask the Hub: leave it out, or {_elsewhere(repository, 'model', revision)}"
    else:
        why = _trouble(repository, "model", revision, asking.get("token"))
    asking["local_files_only"] = why is not None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns), **asking))
    except Exception as error:  # an error of the Hub, of its client library, or of the disk
        why = why or f"the Hub's copy cannot be fetched ({first_line(error)}); try again, or {_elsewhere(repository, 'model', revision)}"
        raise NotHad(f"{subject}: {_neither('model')}, and {why}") from error


@contextlib.contextmanager
def data_set(subject: str, repository: str) -> Iterator[None]:
    """Let the library `datasets` open `repository` inside the block: from the Hub if it answers, else from the cache alone.

    Raises NotHad, with `subject` at the start of its message, where neither the Hub nor the cache has it.
    """
    why = _trouble(repository, "dataset", None)
    if why is None:
        yield
        return
    with _cache_only():
        try:
            yield
        except Exception as error:  # the library raises many kinds of exceptions
            absent = isinstance(error, ConnectionError | FileNotFoundError) or error.__class__.__name__ == "DatasetNotFoundError"
            found = "" if absent else f" ({first_line(error)})"
            raise NotHad(f"{subject}: {_neither('dataset')}{found}, and {why}") from error


def opened(subject: str, url: str, timeout: float, instead: str) -> Any:
    """Return the open answer of `url`, which must begin within `LIMIT` seconds; each later read may take `timeout` seconds.

    Raises NotHad where there is no answer; its message begins with `subject` and ends with `instead`, which says what to do.
    """
    try:
        return within(LIMIT, lambda: urlopen(url, timeout=timeout))
    except Exception as error:  # an error of the network, the server or the library
        raise NotHad(f"{subject} cannot be downloaded ({_told(error)}); {instead}") from error


def check_address(subject: str, url: str) -> None:
    """Raise NotHad where no server answers at `url`, or answers that nothing is there; addresses other than http(s) are not checked."""
    if not url.startswith(("http://", "https://")):
        return
    try:
        within(LIMIT, lambda: urlopen(Request(url, method="HEAD"), timeout=LIMIT).close())
    except HTTPError as error:
        if error.code in (404, 410):
            raise NotHad(f"{subject}, where the server has nothing (it answers {error.code}); mend the address") from error
    except Exception as error:  # an error of the network or the library
        raise NotHad(f"{subject}, which cannot be reached ({_told(error)}); download the shards elsewhere and give their folder") from error


def _trouble(repository: str, kind: Kind, revision: str | None, token: str | bool | None = None) -> str | None:
    """Return why the Hub does not provide `repository`, and what to do; None if it does. The Hub is asked once, for `LIMIT` seconds."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    elsewhere, word = _elsewhere(repository, kind, revision), WORDS[kind]
    if setting := _forbidden(kind):
        return f"{setting} forbids to ask the Hub: unset it, or {elsewhere}"
    asked, told = _unreachable.get(constants.ENDPOINT, (-REMEMBERED, ""))
    if time.monotonic() - asked < REMEMBERED:
        return f"{constants.ENDPOINT} cannot be reached ({told}): {elsewhere}"
    api, page = huggingface_hub.HfApi(token=token), f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
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
    except Exception as error:  # errors of the network, and of the client library, whose kinds vary with its version
        told = _told(error)
        _unreachable[constants.ENDPOINT] = (time.monotonic(), told)
        return f"{constants.ENDPOINT} cannot be reached ({told}): {elsewhere}"
    return None


def _forbidden(kind: Kind) -> str | None:
    """Return the environment variable that forbids asking the Hub for this `kind` of repository; None where it may be asked."""
    from huggingface_hub import constants

    forbidden = bool(constants.HF_HUB_OFFLINE)
    if kind == "dataset":
        import datasets

        forbidden = bool(datasets.config.HF_HUB_OFFLINE)
    return next((name for name in SETTINGS if os.environ.get(name)), SETTINGS[0]) if forbidden else None


@contextlib.contextmanager
def _cache_only() -> Iterator[None]:
    """Keep the Hub's client and `datasets` off the network inside the block, as `datasets` would try to connect for half a minute."""
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


def _elsewhere(repository: str, kind: Kind, revision: str | None = None) -> str:
    """Return advice on how to get `repository` at `revision` by another machine that can reach the Hub."""
    of_data = " --repo-type dataset" * (kind == "dataset") + (f" --revision {revision}" if revision else "")
    return (
        f"fetch it where there is a network (`hf download {repository}{of_data} --local-dir FOLDER`) and give that folder, or bring the "
        "cache of that machine and set HF_HOME to it"
    )


def _told(error: BaseException) -> str:
    """Return the innermost reason of a network error, as one short line."""
    reason = getattr(error, "reason", None)
    return first_line(reason if isinstance(reason, BaseException) else error).rstrip(".")[:200]
