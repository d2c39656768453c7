"""Scripts on eight devices, emulated on a CPU."""

import os
import subprocess
import sys

from where import ROOT


def run_on_eight_devices(script: str, *arguments: str, timeout: float | None = None) -> None:
    """Run code in a process with eight devices; it must end well, before `timeout` (seconds)."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
