"""``python -m hangs SCENARIO [ARGUMENT ...]``."""

import faulthandler
import signal
import sys

faulthandler.enable()
faulthandler.register(signal.SIGUSR1, all_threads=True)
# Ctrl-C is ignored, and this inherited, where a shell without job control started the tests in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

from hangs import crowds, ending, misbehaving  # noqa: E402

for module in (ending, misbehaving, crowds):
    scenario = getattr(module, sys.argv[1], None)
    if scenario is not None:
        scenario(*sys.argv[2:])
        break
else:
    sys.exit(f"there is no scenario {sys.argv[1]!r}")
