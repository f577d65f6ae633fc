"""A bare Debian or Ubuntu root, made with debootstrap: python3, git, make and nothing else.

It gets this machine's name servers and the certificates that this machine trusts, so that apt-get
and pip reach the same indexes from inside. Needs root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGES = "python3,git,make,ca-certificates"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SSL_CERT_FILE": CERTIFICATES,
    "REQUESTS_CA_BUNDLE": CERTIFICATES,
    "PIP_NO_CACHE_DIR": "1",
}


class Suite(NamedTuple):
    """Arguments of debootstrap before and after the suite's name."""

    options: tuple[str, ...] = ()
    mirror: tuple[str, ...] = ()


UNKNOWN_TO_DEBIAN = {
    # Debian's machines do not have Ubuntu's keys; python3-venv is in universe.
    "noble": Suite(
        ("--no-check-gpg", "--components=main,universe"),
        ("http://archive.ubuntu.com/ubuntu", "/usr/share/debootstrap/scripts/gutsy"),
    ),
}
"""Suites that Debian's debootstrap cannot make by their names alone."""
ENTER = (
    'root=$1; shift; mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"; '
    'mount -t tmpfs tmpfs "$root/tmp"; mount -t sysfs sys "$root/sys" || true; '
    'exec chroot "$root" "$@"'
)
"""Run in a mount namespace of its own, so that no mount outlives the command."""


def make(root: Path, suite: str) -> None:
    """Makes the root. Raises: SystemExit without root's rights or debootstrap."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise SystemExit("a bare root needs root's rights and debootstrap (apt-get install it)")
    if not root.exists():
        row = UNKNOWN_TO_DEBIAN.get(suite, Suite())
        options = ("--variant=minbase", f"--include={PACKAGES}", *row.options)
        command = ["debootstrap", *options, suite, str(root), *row.mirror]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", root / "etc" / name)
    _trust(root)
    (root / "etc/apt/apt.conf.d/99machine").write_text(
        'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n'
    )


def run(root: Path, command: Sequence[str], **environment: str) -> int:
    """The exit status of a command inside the root, which sees nothing else of this machine."""
    enter = ["unshare", "--mount", "--pid", "--fork", "bash", "-c", ENTER, "bash", str(root)]
    given = {**ENVIRONMENT, **environment}
    return subprocess.run([*enter, *command], env=given, check=False).returncode


def used_bytes(root: Path) -> int:
    """Bytes on disk below the root, without what is mounted into it."""
    done = subprocess.run(["du", "-sxB1", str(root)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def _trust(root: Path) -> None:
    """The certificates that this machine trusts beyond Debian's own."""

    def told(text: str) -> dict[str, str]:
        return {re.sub(r"\s", "", one): one for one in CERTIFICATE.findall(text)}

    stock: dict[str, str] = {}
    for file in Path("/usr/share/ca-certificates").rglob("*.crt"):
        stock |= told(file.read_text("utf-8"))
    folder = root / "usr/local/share/ca-certificates"
    folder.mkdir(parents=True, exist_ok=True)
    extra = [
        text
        for key, text in told(Path(CERTIFICATES).read_text("utf-8")).items()
        if key not in stock
    ]
    for number, text in enumerate(extra):
        (folder / f"machine-{number}.crt").write_text(f"{text}\n")
    path = {"PATH": ENVIRONMENT["PATH"]}
    subprocess.run(
        ["chroot", str(root), "update-ca-certificates"],
        env=path,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (root / "etc/pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
