"""What vLLM calls in each of its processes (entry point group ``vllm.general_plugins``): better LoRA on CPUs.

``GRAFT_VLLM_CPU_LORA=0`` leaves vLLM's own wrapper in place.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SWITCH = "GRAFT_VLLM_CPU_LORA"
_WRAPPER = "graft_server.engine.vllm.cpu_lora.GroupedPunicaWrapper"


#: Set by our engine: vLLM's processes then end with the one that started them, however that ends.
BOUND = "GRAFT_VLLM_BOUND"
_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Name our wrapper where vLLM's CPU platform is asked for one; elsewhere vLLM's own kernels are fast."""
    if os.environ.get(BOUND) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(SWITCH, "1") == "0":
        return
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        type(current_platform).get_punica_wrapper = classmethod(lambda cls: _WRAPPER)
