"""Adapters on a model hub: their safetensors and JSON files, by ``owner/repo`` or ``owner/repo@revision``.

The client fetches and then sends them, as it does a folder's: a server that fetched what its callers name would do so
from its own network and with its own token.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft_client.cli.adapter_files import FILES, check_names
from graft_client.errors import ConnectError, GraftError, UsageError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_ELSEWHERE = "download it where there is one and give the folder"


def is_hub_id(place: Path) -> bool:
    """Whether this is an id on a hub, and nothing on this machine has such a path."""
    return _ID.fullmatch(str(place)) is not None and not place.exists()


@contextmanager
def fetched(place: Path) -> Iterator[Path]:
    """A folder with the files of an adapter on the hub (that of ``HF_ENDPOINT``), for the body of the ``with``.

    Raises:
        UsageError: the hub has no such repository or revision.
        DataError: a file is missing there, or the weights are pickled.
        ConnectError: the hub can't be reached, or broke off.
        GraftError: the hub refuses it, or its client is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub import errors as hub
    except ModuleNotFoundError as error:
        raise GraftError("the hub's client is not installed: pip install 'graftwork[hub]'") from error
    repo, _, revision = str(place).partition("@")
    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            info = api.model_info(repo, revision=revision or None)
            names = {sibling.rfilename for sibling in info.siblings or ()}
            check_names(names, str(place))
            for name in FILES:
                if name in names:
                    # All of one commit, whatever is pushed meanwhile.
                    api.hf_hub_download(repo, name, revision=info.sha, local_dir=scratch)
        except hub.GatedRepoError as error:
            page = f"{api.endpoint}/{repo}"
            raise GraftError(f"{repo}: accept its terms at {page} and log in (hf auth login, or HF_TOKEN)") from error
        except hub.RevisionNotFoundError as error:
            raise UsageError(f"{repo}: no revision {revision!r}; name a branch, a tag or a commit") from error
        except hub.RepositoryNotFoundError as error:
            raise UsageError(
                f"no folder or archive {repo} here, and {api.endpoint} has no such model; where it is private, "
                "log in (hf auth login, or HF_TOKEN)"
            ) from error
        except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, OSError) as error:
            raise ConnectError(
                f"no folder or archive {repo} here, and {api.endpoint} can't be reached; {_ELSEWHERE}"
            ) from error
        except Exception as error:
            if isinstance(error, GraftError):
                raise
            # Connections fail with errors of whatever the hub's client sends its requests by.
            raise ConnectError(f"{repo} could not be fetched from {api.endpoint}: {error}; {_ELSEWHERE}") from error
        yield Path(scratch)
