"""Checkpoints of the Hugging Face hub: fetched once, then read from the local cache, also without a network."""

from __future__ import annotations

import re
from pathlib import Path

from regard.models.checkpoint import BESIDE, CONFIG
from regard.models.family import ModelError
from regard.models.rules import listed
from regard.models.weight_files import INDEX, PICKLES, WEIGHTS

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[^\s@]+))?")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_POOLING = re.compile(r"[^/]+/config\.json")  # of a sentence encoder's modules, such as 1_Pooling/config.json


def is_hub_id(source: str) -> bool:
    """Whether this could be OWNER/NAME, or OWNER/NAME@REVISION, of a repository on the hub."""
    return _HUB_ID.fullmatch(source) is not None


def fetch(source: str) -> Path:
    """The directory of a checkpoint on the hub, in the cache of `huggingface_hub`; what is missing there is fetched.

    Weights are fetched as safetensors alone. Where the hub cannot be reached, what an earlier fetch left is taken.

    Args:
        source: OWNER/NAME, or OWNER/NAME@REVISION with a branch, a tag or a commit.

    Raises:
        ModelError: there is no such repository or revision, it asks for access, it has no safetensors, or the hub
            cannot be reached and the cache has no copy.
    """
    import huggingface_hub
    from huggingface_hub import errors

    found = _HUB_ID.fullmatch(source)
    if found is None:
        raise ModelError(f"{source!r} is no hub id: one is OWNER/NAME or OWNER/NAME@REVISION")
    repository, revision = found["repository"], found["revision"]
    try:
        information = huggingface_hub.HfApi().model_info(repository, revision=revision)
        wanted = _wanted([file.rfilename for file in information.siblings or []], source)
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        reason = "is not on the hub, or is private"
        if isinstance(error, errors.GatedRepoError):
            reason = "asks for access: accept its terms on the hub and log in with `hf auth login`"
        elif isinstance(error, errors.RevisionNotFoundError):
            reason = f"has no revision {revision or 'main'!r}"
        raise ModelError(f"{repository!r} is neither a directory here nor to be had: it {reason}") from error
    except ModelError:
        raise
    except Exception as error:  # whatever the HTTP library below calls a network that is not there
        return _cached(repository, revision, error)


def _wanted(names: list[str], source: str) -> list[str]:
    """The files to fetch of those that a repository has."""
    weights = [n for n in names if n in (WEIGHTS, INDEX) or _SHARD.fullmatch(n)]
    if WEIGHTS in weights:  # else shards and their index
        weights = [WEIGHTS]
    if not weights or CONFIG not in names:
        pickles = [n for n in names if n in PICKLES or n.endswith((".bin", ".pt", ".ckpt"))]
        if pickles:
            raise ModelError(
                f"{source} has its weights as {listed(pickles)} alone, in a form that can run any code when it is"
                f" read: regard reads safetensors alone"
            )
        missing = CONFIG if CONFIG not in names else WEIGHTS
        raise ModelError(f"{source} is no checkpoint that regard reads: it has no {missing}; it has {listed(names)}")
    return [CONFIG, *weights, *(n for n in names if n in BESIDE or _POOLING.fullmatch(n))]


def _cached(repository: str, revision: str | None, reason: Exception) -> Path:
    """What an earlier fetch left.

    Raises:
        ModelError: nothing; the message says what was looked for, where, and why it could not be fetched.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:  # whoever reads the directory says so if more than its config.json is missing
        place = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG], local_files_only=True
        )
        return Path(place)
    except errors.LocalEntryNotFoundError:
        why = " ".join(str(reason).split()) or type(reason).__name__
        raise ModelError(
            f"{repository!r} is not a directory here, and the hub cannot be reached ({why}); in its cache,"
            f" {constants.HF_HUB_CACHE}, there is no copy of revision {revision or 'main'}"
        ) from reason
