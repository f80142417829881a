"""Where the tests of the torch engine compute: ``GRAFT_TEST_DEVICE=cuda`` has them run on a GPU."""

from __future__ import annotations

import os

TEST_DEVICE = os.environ.get("GRAFT_TEST_DEVICE", "cpu")
