"""Properties of the machine and the installation: cores, peak memory, package versions."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

# Distributions that install the module cv2.
_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)


def usable_cores() -> int:
    """Number of cores that this process may use; all cores where the system does not report it."""
    # Linux only.
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)


def peak_resident_mib() -> int | None:
    """Peak resident memory of this process in MiB; None where it is not reported (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    # Bytes on macOS, KiB on Linux.
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of installed distributions by name; "opencv" means the one that installs cv2."""
    found = {}
    for package in packages:
        names = _OPENCV if package == "opencv" else (package,)
        name, text = next(((name, text) for name in names if (text := _version(name))), (package, None))
        found[name] = text or _version_of_module(package)
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _version_of_module(package: str) -> str:
    """Version of a module built from source or installed by another package manager."""
    module = import_module("cv2" if package == "opencv" else package.replace("-", "_"))
    return str(getattr(module, "__version__", "unknown"))
