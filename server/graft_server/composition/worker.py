"""The process that composes: one JSON order as its argument, one JSON line as its answer.

The server's own process has no torch, and a merge of many adapters must not take its memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from graft_plugins.method import AdapterFault


def main() -> None:
    """Carry out the order; what can't be composed is an answer, not a crash."""
    order = json.loads(sys.argv[1])
    try:
        answer = _carry_out(order)
    except AdapterFault as error:
        answer = {"fault": str(error)}
    print(json.dumps(answer))  # noqa: T201 - the answer


def _carry_out(order: dict[str, Any]) -> dict[str, Any]:
    target = Path(order["target"])
    if order["kind"] == "merge":
        from graft_server.composition.merge import merge

        folders = [Path(folder) for folder in order["folders"]]
        options = {name: order[name] for name in ("method", "density", "seed")}
        return {"rank": merge(folders, order["weights"], target, **options)}
    from graft_server.composition.checkpoint import save_merged

    save_merged(Path(order["base"]), Path(order["adapter"]), target)
    return {}


if __name__ == "__main__":
    main()
