"""Models on the Hugging Face Hub: fetched into its cache, and pushed to it.

`huggingface_hub` is imported only where an address or a push asks for it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from genkit.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import errors

SCHEME = "hf://"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether `path` means a model on the hub: `hf://owner/name` or `hf://owner/name@revision`."""
    return str(path).startswith(SCHEME)


def is_name(name: str) -> bool:
    """Whether the hub could have a repository called `name`, which reads owner/name."""
    parts = re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) and len(name) <= 96
    return bool(parts) and not re.search(r"--|\.\.|(^|/)[.-]|[.-](/|$)|\.git$", name)


def fetch(address: str, file: str) -> Path:
    """The local copy of `file` in the hub's repository at `address`, fetched if it is not there.

    Where the hub does not hand it out, or there is no network, it is the copy in the cache.
    `CheckpointError` says what is wrong with the address, the repository or the network. Nothing
    but this file is downloaded, and nothing is run.
    """
    name, at, revision = address.removeprefix(SCHEME).partition("@")
    if not is_name(name) or (at and not re.fullmatch(r"[^\s@]+", revision)):
        raise CheckpointError(
            f"'{address}' is no address of a model: one reads hf://owner/name or "
            "hf://owner/name@revision"
        )
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    wanted = revision or None
    try:
        # One attempt: the download by itself tries an unreachable hub for half a minute.
        get_hf_file_metadata(hf_hub_url(name, file, revision=wanted))
        return Path(hf_hub_download(name, file, revision=wanted, library_name="genkit"))
    except transport_errors() as error:
        gone = isinstance(error, RemoteEntryNotFoundError | RevisionNotFoundError)
        cached = None if gone else try_to_load_from_cache(name, file, revision=wanted)
        if isinstance(cached, str):
            return Path(cached)
        raise CheckpointError(_not_fetched(error, name, revision, file)) from error


def try_once() -> bool:
    """Whether the hub gives a sign of life; without one it counts as out of reach from then on.

    Libraries on top of the hub's own try for a minute otherwise, and write of every attempt.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except transport_errors():
        constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def transport_errors() -> tuple[type[Exception], ...]:
    """What a request may fail with: errors of the HTTP client, whichever it is, and OSErrors."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)


def _not_fetched(error: Exception, name: str, revision: str, file: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"'{name}' is gated: ask for access on its page on the hub, then {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no repository '{name}' on the hub, or it is private: check the name, or "
            f"{LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{name}' has no revision '{revision}': name a branch, a tag or a commit of it"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        where = f"'{name}' at '{revision}'" if revision else f"'{name}'"
        return f"{where} has no {file}: was it pushed with `genkit push`?"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub does not hand '{name}' out: {answer(error)}"
    again = f"hf download {name} {file}" + (f" --revision {revision}" if revision else "")
    return (
        f"'{SCHEME}{name}' is not in the cache and {unreachable(error)}: "
        f"fetch it beforehand, with a network, by `{again}`"
    )


def answer(error: errors.HfHubHTTPError) -> str:
    """What the hub said, in one line."""
    said = " ".join((error.server_message or error.response.reason_phrase).split())
    return f"{error.response.status_code} {said}".strip()


def unreachable(error: BaseException) -> str:
    """Why the hub cannot be reached."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE keeps the hub out of reach"
    if isinstance(error.__cause__, errors.FileMetadataError):
        return (
            f"{constants.ENDPOINT} does not answer as a hub does (check HF_ENDPOINT, or the proxy)"
        )
    return f"{constants.ENDPOINT} cannot be reached ({' '.join(str(error).split())})"
