"""The machine and the packages, to stand beside measured figures."""

import datetime
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax


def describe_machine() -> dict[str, Any]:
    """Date, device, processor and package versions, to stand beside any measured figure."""
    device = jax.devices()[0]
    model = ""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((row.partition(":")[2].strip() for row in file if "model name" in row), "")
    processor = model or platform.processor() or platform.machine()
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.platform} ({device.device_kind}) x {jax.device_count()}",
        "machine": f"{processor}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the results."""
    installed = {"python": platform.python_version()}
    for name in ("stylesr-jax", "jax", "jaxlib", "flax", "optax", "distrax", "numpy", "pillow"):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
