"""Models on the Hugging Face Hub, downloaded into its cache.

`huggingface_hub` is imported for an address alone.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import errors

_log = logging.getLogger(__name__)
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
    """The local copy of `file` in the hub's repository at `address`, downloaded if necessary.

    Without a network, or if the hub refuses, it is the copy in the cache.
    `CheckpointError` says what is wrong with the address, the repository or the network. Nothing
    but this file is downloaded, and nothing is run.
    """
    name, at, revision = address.removeprefix(SCHEME).partition("@")
    if not is_name(name) or (at and not re.fullmatch(r"[^\s@]+", revision)):
        raise CheckpointError(
            f"'{address}' is not the address of a model: write hf://owner/name or "
            "hf://owner/name@revision"
        )
    from huggingface_hub import hf_hub_download

    with one_attempt():
        try:
            revised = revision or None
            copy = Path(hf_hub_download(name, file, revision=revised, library_name="genkit"))
            _log.debug("%s of %s is '%s'", file, address, copy)
            return copy
        except Exception as error:  # Errors of the HTTP client are among them.
            caught = error
    raise CheckpointError(_not_fetched(caught, name, revision, file)) from caught


def fetch_folder(address: str, suffixes: tuple[str, ...]) -> Path:
    """The local copy of a folder of the hub's repository at `address`, files of `suffixes` alone.

    The address is `hf://owner/name`, or `hf://owner/name/folder`, with `@revision` at its end if
    wanted. Without a network it is the copy in the cache. If there are weights as safetensors, the
    other forms are left out; of weights in shards only the index is fetched. `CheckpointError` says
    what is wrong.
    """
    name, folder, revision = split_address(address)
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    revised = revision or None
    with one_attempt() as online:
        try:
            if not online:
                copy = snapshot_download(name, revision=revised, local_files_only=True)
                return Path(copy, folder)
            about = HfApi().model_info(name, revision=revised)
            files = [each.rfilename for each in about.siblings or ()]
            copies = [
                hf_hub_download(name, file, revision=revised, library_name="genkit")
                for file in _wanted(files, folder, suffixes)
            ]
        except Exception as error:  # Errors of the HTTP client are among them.
            raise CheckpointError(_not_fetched(error, name, revision, folder)) from error
    if not copies:
        raise CheckpointError(
            f"'{address}' holds no file with weights; it holds {', '.join(files[:10]) or 'none'}"
        )
    return Path(copies[0]).parent


def fetch_beside(address: str, file: str) -> Path:
    """The local copy of one more file in the folder at `address`; see `fetch`."""
    name, folder, revision = split_address(address)
    at = f"@{revision}" if revision else ""
    return fetch(f"{SCHEME}{name}{at}", f"{folder}/{file}" if folder else file)


def split_address(address: str) -> tuple[str, str, str]:
    """The repository, the folder and the revision of `hf://owner/name/folder@revision`."""
    path, at, revision = address.removeprefix(SCHEME).partition("@")
    name, folder = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
    if not is_name(name) or (at and not re.fullmatch(r"[^\s@]+", revision)) or ".." in folder:
        raise CheckpointError(
            f"'{address}' is not the address of a model: write hf://owner/name, "
            "hf://owner/name/folder or hf://owner/name@revision"
        )
    return name, folder, revision


def _wanted(files: Sequence[str], folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files of a folder to download: the safest form of its weights, and configurations."""
    inside = [
        file for file in files if file.rpartition("/")[0] == folder and file.endswith(suffixes)
    ]
    configs = [file for file in inside if file.endswith((".json", ".yaml", ".yml"))]
    weights = [file for file in inside if file.endswith(".safetensors")]
    if any(file.endswith(".safetensors.index.json") for file in configs):
        return configs
    return [*configs, *weights] if weights else inside


@contextmanager
def one_attempt() -> Iterator[bool]:
    """Whether the hub answers. If it does not, nothing asks it again inside the block.

    Libraries on top of it would try for up to a minute, and print every attempt.
    """
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # Errors of the HTTP client, whichever it is.
        constants.HF_HUB_OFFLINE = True
    try:
        yield not constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE = before


def _not_fetched(error: Exception, name: str, revision: str, file: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):  # A gated one is among these.
        return (
            f"'{name}' is not on the hub, or it is private or gated: check the name, ask for "
            f"access on its page if it is gated, and {LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError | errors.RemoteEntryNotFoundError):
        where = f"'{name}' at revision '{revision}'" if revision else f"'{name}'"
        return f"{where} has no {file}: check the name, and that it was pushed with `genkit push`"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub does not hand '{name}' out: {answer(error)}"
    again = f"hf download {name} {file}" + (f" --revision {revision}" if revision else "")
    return (
        f"'{SCHEME}{name}' is not in the cache and {unreachable(error)}: "
        f"fetch it beforehand, with a network, by `{again}`"
    )


def answer(error: errors.HfHubHTTPError) -> str:
    """The hub's answer in one line."""
    said = " ".join((error.server_message or error.response.reason_phrase).split())
    return f"{error.response.status_code} {said}".strip()


def unreachable(error: BaseException | None = None) -> str:
    """Why the hub cannot be reached."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE keeps the hub out of reach"
    if error and isinstance(error.__cause__, errors.FileMetadataError):
        return f"{constants.ENDPOINT} is not a hub (check HF_ENDPOINT, or the proxy)"
    return f"{constants.ENDPOINT} cannot be reached"
