"""What differs between operating systems and installations: cores, peak memory, versions of packages."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

# Distributions that install the module cv2; any of them will do.
_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)


def usable_cores() -> int:
    """Cores that this process may run on; all of the machine where the system does not tell."""
    # Linux only.
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)


def peak_resident_mib() -> int | None:
    """The most memory that this process has had in MiB; None where the system does not tell, as Windows."""
    try:
        import resource
    except ImportError:
        return None
    # Bytes on macOS, KiB on Linux.
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of installed distributions, by name; "opencv" stands for the one that installs cv2."""
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
    """Of what was built from source, or by a package manager other than pip."""
    module = import_module("cv2" if package == "opencv" else package.replace("-", "_"))
    return str(getattr(module, "__version__", "unknown"))
