"""What holds for every suite."""

from __future__ import annotations

import signal

# A shell's background jobs, such as a CI run, have Ctrl-C ignored, and their children inherit that: the commands that
# the tests start and interrupt would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
