"""The hub of models: the commit behind a hub id, and one sentence for what the hub refuses.

`huggingface_hub` asks a silent hub for minutes: once for 10 s, then six times for 60 s each. Here
the whole look-up ends after `HF_HUB_ETAG_TIMEOUT` seconds (default: 10), the variable that
`huggingface_hub` reads for its first try.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from transforms.core.errors import ConfigError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
"""Pause between two questions to a hub that did not answer."""

_TEMPORARY = (429, 500, 502, 503, 504)
"""Statuses after which the same question may have an answer."""


def hub_commit(name: str, revision: str | None, marker: str) -> str:
    """Return the commit of a hub id, from the hub or, if it gives no answer, from its cache.

    Args:
        name: The hub id, `owner/name`.
        revision: Branch, tag or commit.
        marker: Name of a file that every model has.

    Raises:
        ConfigError: The hub has no such model or refuses it, or neither the hub nor the cache can
            be read.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        commit = _cached_commit(name, revision, marker)
        if commit is not None:
            return commit
    from huggingface_hub import constants

    end = time.monotonic() + constants.HF_HUB_ETAG_TIMEOUT
    while True:
        try:
            return _ask(name, revision, marker, max(end - time.monotonic(), 0.1))
        except _errors() as error:
            commit = _cached_commit(name, revision, marker)
            if commit is not None:
                if not constants.is_offline_mode():
                    reason = _reason(name, revision, marker, error)
                    log.warning("using the copy of %s on this machine: %s", name, reason)
                return commit
            if not _is_temporary(error) or time.monotonic() + RETRY_AFTER_S >= end:
                raise ConfigError(_sentence(name, revision, marker, error)) from error
        time.sleep(RETRY_AFTER_S)


@contextlib.contextmanager
def refusals(name: str, revision: str | None) -> Iterator[None]:
    """Raise a `ConfigError` with one sentence if the hub refuses a model while it is loaded.

    Libraries wrap the hub's errors into their own, so the causes of an error are examined too.
    """
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0
            if status in (401, 403) or isinstance(cause, RepositoryNotFoundError):
                raise ConfigError(_sentence(name, revision, "file", cause)) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _errors() -> tuple[type[Exception], ...]:
    """Return what a look-up raises: errors of the hub, of the network, and of a wrong id."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,
    )

    return (HTTPError, HFValidationError, OSError)


def _ask(name: str, revision: str | None, marker: str, seconds: float) -> str:
    """Return the commit that the hub states, within a number of seconds.

    The limit of an HTTP client holds for each address of a host and for each part of an answer, so
    the question is asked in a thread, which may outlive the limit.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import FileMetadataError

    def question() -> str:
        url = hf_hub_url(name, marker, revision=revision)
        commit = get_hf_file_metadata(url, timeout=seconds).commit_hash
        if commit is None:
            raise FileMetadataError("the answer names no commit")
        return commit

    return _within(seconds, question)


def _within(seconds: float, call: Callable[[], str]) -> str:
    """Return what a function returns, or raise what it raises, or a `TimeoutError`."""
    answers: list[str] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(call())
        except Exception as error:  # It is raised again by the caller's thread.
            errors.append(error)

    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError("no answer")
    return answers[0]


def _cached_commit(name: str, revision: str | None, marker: str) -> str | None:
    """Return the commit of the copy in the hub's cache, None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(name, marker, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    # The cache keeps a file under snapshots/<commit>/.
    return path.parent.name


def _is_temporary(error: Exception) -> bool:
    """Return whether the same question may have an answer a little later."""
    from huggingface_hub.errors import (
        FileMetadataError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TEMPORARY
    return not isinstance(error, (FileMetadataError, HFValidationError, OfflineModeIsEnabled))


def _sentence(name: str, revision: str | None, marker: str, error: BaseException) -> str:
    """Return what is wrong and what to do.

    The text of an error is left out, since it may hold a URL with a password.
    """
    reason = _reason(name, revision, marker, error)
    return f"key 'model' has value {name!r}: no such folder, and {reason}"


def _reason(name: str, revision: str | None, marker: str, error: BaseException) -> str:
    from huggingface_hub import constants, errors, get_token

    hub = re.sub("//[^/@]*@", "//", constants.ENDPOINT)
    token = get_token()
    if isinstance(error, errors.HFValidationError):
        return "it cannot be a hub id: expected 'owner/name'"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the hub is not asked, since HF_HUB_OFFLINE is set, and this machine has no copy"
    if isinstance(error, errors.FileMetadataError):
        return f"{hub} does not answer as a hub: check HF_ENDPOINT and the proxy"
    if not isinstance(error, errors.HfHubHTTPError):
        return (
            f"{hub} cannot be reached ({type(error).__name__}): check the network, or wait longer "
            f"than {constants.HF_HUB_ETAG_TIMEOUT} s with HF_HUB_ETAG_TIMEOUT=SECONDS"
        )
    if isinstance(error, errors.GatedRepoError):
        account = "with the account of your token (HF_TOKEN)" if token else "and log in (HF_TOKEN)"
        return f"{name} is gated: accept its licence at {hub}/{name} {account}"
    if isinstance(error, errors.RepositoryNotFoundError):
        reader = "your token (HF_TOKEN) may not read it" if token else "log in (HF_TOKEN)"
        return f"{hub} has no model of that name, or it is private: {reader}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub}/{name} has no revision {revision!r}: change key 'revision'"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{hub}/{name} has no {marker}, so this stage cannot use it"
    status = error.response.status_code
    if status in (401, 403):
        reader = "your token (HF_TOKEN): make a new one" if token else "strangers: set HF_TOKEN"
        return f"{hub} refuses {reader} (HTTP {status})"
    return f"{hub} answers with HTTP {status}: try again later"
