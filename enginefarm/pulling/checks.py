"""What an engine needs from a host. Each check returns a reason to refuse it, a caveat, or None."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from enginefarm.documents.gpus import PART_OF_A_CARD
from enginefarm.documents.host import Host
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.versions import AMPERE, version_tuple
from enginefarm.host.detect import architecture
from enginefarm.names import runtime_of
from enginefarm.store.budgets import Budgets

MINIMUM_DRIVER = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
"""CUDA major version -> oldest Linux driver that runs it (CUDA release notes, minor-version
compatibility)."""


class Fit(IntEnum):
    """How well an engine fits, best first."""

    EXACT_GPU = 0
    SAME_COMPUTE_CAPABILITY = 1
    HARDWARE_COMPATIBLE = 2
    PORTABLE = 3

    @property
    def words(self) -> str:
        return self.name.lower().replace("_", " ")


class _Unknown(str):
    """A caveat: something that could not be checked."""


def is_caveat(finding: str) -> bool:
    """Whether a check's finding is a caveat (it could not check) and not a reason to refuse."""
    return isinstance(finding, _Unknown)


Check = Callable[[Manifest, Host], str | None]


def fit_of(manifest: Manifest, host: Host) -> Fit | None:
    """How the engine's GPU relates to the host's; None when it cannot run there."""
    built_for = manifest.spec.gpu
    portable = runtime_of(manifest.spec.toolchain.name)[1].portable
    if host.gpu is not None and built_for.label == host.gpu:
        return Fit.PORTABLE if portable else Fit.EXACT_GPU
    if host.compute_capability is None:
        return None
    if built_for.compute_capability == host.compute_capability:
        return Fit.PORTABLE if portable else Fit.SAME_COMPUTE_CAPABILITY
    if host.compute_capability in manifest.build.compute_capabilities:
        return Fit.PORTABLE
    if (
        not portable
        and manifest.spec.builder.compatibility == "ampere_plus"
        and version_tuple(built_for.compute_capability) >= AMPERE
        and version_tuple(host.compute_capability) >= AMPERE
    ):
        return Fit.HARDWARE_COMPATIBLE
    return None


def _gpu(manifest: Manifest, host: Host) -> str | None:
    fit = fit_of(manifest, host)
    built_for = manifest.spec.gpu
    if fit is None:
        carried = ", ".join(manifest.build.compute_capabilities) or built_for.compute_capability
        return (
            f"built for {built_for.label} (compute capability {carried}), "
            f"compatibility {manifest.spec.builder.compatibility}; the host has "
            f"{host.compute_capability or 'an unknown compute capability'}"
        )
    if host.gpu_name is not None and PART_OF_A_CARD.search(host.gpu_name):
        return _Unknown(
            f"built for a whole {built_for.label}; the host has {host.gpu_name}: it can be slower, "
            "and fails if it needs more memory than that part of the GPU has"
        )
    if (
        fit is Fit.SAME_COMPUTE_CAPABILITY
        and manifest.spec.builder.compatibility != "same_compute_capability"
    ):
        return _Unknown(
            f"tuned on {built_for.label}, another GPU of the same compute capability; it can be "
            "slower, and fails if it needs more memory than the host's GPU has"
        )
    return None


def _runtime(manifest: Manifest, host: Host) -> str | None:
    toolchain = manifest.spec.toolchain
    runtime = runtime_of(toolchain.name)[0]
    here = host.runtimes.get(runtime)
    if here is None:
        return _Unknown(f"needs {runtime} {toolchain.build}; it was not found here")
    if here == toolchain.build:
        return None
    if not manifest.spec.builder.version_compatible:
        return f"built with {runtime} {toolchain.build}; the host has {here}"
    built, has = version_tuple(toolchain.build), version_tuple(here)
    if built[:1] != has[:1] or has < built:
        return (
            f"built with {runtime} {toolchain.build}, for this and later builds of the same major "
            f"version; the host has {here}"
        )
    return None


def _system(manifest: Manifest, host: Host) -> str | None:
    built = manifest.spec.toolchain
    if host.os is None or host.arch is None:
        return _Unknown(f"needs {built.os}/{built.arch}; the host's system is unknown")
    if (built.os, architecture(built.arch)) != (host.os, host.arch):
        return f"built for {built.os}/{built.arch}; the host is {host.os}/{host.arch}"
    return None


def _driver(manifest: Manifest, host: Host) -> str | None:
    toolchain = manifest.spec.toolchain
    minimum = MINIMUM_DRIVER.get(toolchain.cuda.split(".")[0])
    if toolchain.os != "linux" or minimum is None:
        return _Unknown(f"the driver is not checked for CUDA {toolchain.cuda} on {toolchain.os}")
    if host.driver is None:
        return _Unknown(f"needs driver {minimum} or newer; the host's driver is unknown")
    if version_tuple(host.driver) < version_tuple(minimum):
        return f"CUDA {toolchain.cuda} needs driver {minimum} or newer; the host has {host.driver}"
    return None


def _plugins(manifest: Manifest, host: Host) -> str | None:
    needed = frozenset(manifest.spec.plugins)
    if not needed:
        return None
    named = ", ".join(digest[:12] for digest in sorted(needed))
    if host.plugins is None:
        return _Unknown(f"needs plugin libraries {named}; the plugins of the host are unknown")
    missing = ", ".join(digest[:12] for digest in sorted(needed - host.plugins))
    return f"needs plugin libraries that the host lacks: {missing}" if missing else None


def accurate(manifest: Manifest, budgets: Budgets) -> list[str]:
    """The findings on the accuracy of an engine."""
    over, unknown = budgets.over(manifest), budgets.unknown(manifest)
    found = [f"over the accuracy budget: {'; '.join(over)}"] if over else []
    if unknown:
        found.append(
            _Unknown(f"the accuracy budget needs {', '.join(unknown)}, which was not measured")
        )
    return found


def _verified(manifest: Manifest, host: Host) -> str | None:
    if manifest.device_verification.status == "failed":
        return f"failed verification on the device: {manifest.device_verification.reason}"
    if manifest.device_verification.status == "pending":
        why = manifest.device_verification.reason
        return _Unknown(f"not yet verified on a GPU{': ' + why if why else ''}")
    return None


def _understood(manifest: Manifest, host: Host) -> str | None:
    unknown = manifest.unknown_fields()
    if not unknown:
        return None
    return _Unknown(
        f"its manifest has fields that this enginefarm does not know: {', '.join(unknown)}; "
        "a newer version may check more"
    )


CHECKS: tuple[Check, ...] = (
    _gpu,
    _runtime,
    _system,
    _driver,
    _plugins,
    _verified,
    _understood,
)
"""To add a rule, write a function above and add its name here."""
