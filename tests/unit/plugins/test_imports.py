"""The plugin API stays light: importing all of it brings neither torch nor the server."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from graft_plugins.manager import PluginHost
import graft_plugins.dataset, graft_plugins.testing
assert not PluginHost.load(entry_points=False).faults
heavy = {"torch", "transformers", "graft_server", "graft_client", "sacrebleu", "polib", "defusedxml"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_loading_every_builtin_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
