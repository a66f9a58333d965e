"""The installed command `adafuse`: Ctrl-C while the modules are imported ends the process without a traceback."""

from __future__ import annotations

import signal


def main() -> int:
    """Run the command of `sys.argv` and return the exit status."""
    python = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from adafuse_integrations.cli.main import main as run

    signal.signal(signal.SIGINT, python)
    return run()
