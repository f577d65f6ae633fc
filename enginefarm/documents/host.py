"""What is known of an inference host."""

from __future__ import annotations

from pydantic import Field

from enginefarm.schema import Digest, Frozen


class Host(Frozen):
    """An inference host. None: not known, so nothing is refused for it, and pull says so."""

    gpu_name: str | None = Field(default=None, description="As NVML reports it.")
    gpu: str | None = Field(default=None, description="Label in gpus.toml.")
    compute_capability: str | None = None
    driver: str | None = None
    os: str | None = None
    arch: str | None = None
    runtimes: dict[str, str] = Field(
        default_factory=dict, description="Runtimes that are installed, and their builds."
    )
    plugins: frozenset[Digest] | None = Field(
        default=None, description="Plugin libraries that the server loads."
    )

    def __str__(self) -> str:
        facts = [
            self.gpu or self.gpu_name or "GPU of unknown kind",
            f"compute capability {self.compute_capability}" if self.compute_capability else "",
            f"driver {self.driver}" if self.driver else "",
            f"{self.os or 'any OS'}/{self.arch or 'any architecture'}",
            *(f"{name} {build}" for name, build in sorted(self.runtimes.items())),
        ]
        return ", ".join(fact for fact in facts if fact)
