"""The machine: which disks and NVDIMMs it has, and the command line that says so to QEMU.

Its memory is a file. A snapshot is that file and the state of the devices; a machine that is
restored maps the file privately, so it is there at once and costs only the pages that it touches.
The NVDIMMs are files too, but shared ones: they are no part of a snapshot, and keep what was
stored in them when the process that emulates the machine is killed.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.powercut.image import Image

__all__ = ["DISKS", "Machine", "Monitor", "Snapshot"]

MIB = 1 << 20
_BLOCK_DEVICES = {"disk": 256 * MIB, "log": 2048 * MIB, "target": 256 * MIB}
_NVDIMMS = {"devdax": 256 * MIB, "fsdax": 512 * MIB}
DISKS = {**_BLOCK_DEVICES, **_NVDIMMS}
"""The files of a machine's disks and their sizes, multiples of 128 MiB; they are sparse.

In the guest disk, log and target are /dev/vdd, /dev/vde and /dev/vdf, fsdax is /dev/pmem0, and
devdax is /dev/dax1.0: it numbers the NVDIMMs from the last one on.
"""

_KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr init_on_alloc=0 apparmor=0 audit=0 "
    "random.trust_cpu=on"
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine that has just started, to be gone on with any number of times."""

    directory: Path

    @property
    def memory(self) -> Path:
        """What was in its memory."""
        return self.directory / "memory"

    @property
    def devices(self) -> Path:
        """The state of everything else."""
        return self.directory / "devices"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a guest is made of."""

    image: Image
    packages: Path
    source: Path
    extra: Path | None = None
    """One more image of packages."""
    memory_bytes: int = 1024 * MIB
    kernel_arguments: str = ""
    """More of them, for example to set memory apart."""

    def booting(self, disks: Path) -> list[str]:
        """Return the command that starts it from the beginning."""
        return self._command(disks, ["-m", self._memory])

    def recording(self, disks: Path, snapshot: Snapshot) -> list[str]:
        """The same for a machine that a snapshot will be taken of."""
        return self._command(disks, self._mapped(disks, snapshot, share=True))

    def restoring(self, disks: Path, snapshot: Snapshot) -> list[str]:
        """The same for one that goes on from the snapshot."""
        memory = self._mapped(disks, snapshot, share=False)
        return [*self._command(disks, memory), "-incoming", "defer"]

    @property
    def _memory(self) -> str:
        mib = self.memory_bytes // MIB
        return f"{mib}M,slots=4,maxmem={mib + 2048}M"

    def _mapped(self, disks: Path, snapshot: Snapshot, *, share: bool) -> list[str]:
        memory = {
            "id": "memory",
            "size": self.memory_bytes,
            "mem-path": snapshot.memory,
            "share": "on" if share else "off",
        }
        return [
            *("-m", self._memory),
            *("-object", _options("memory-backend-file", memory)),
            *("-machine", "memory-backend=memory"),
            *("-qmp", f"unix:{Monitor.path(disks)},server=on,wait=off"),
        ]

    def _command(self, disks: Path, memory: list[str]) -> list[str]:
        command = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            # mem-ctrl: the guest is told that a power cut loses what is in the CPU's caches.
            *("-machine", "q35,nvdimm=on,nvdimm-persistence=mem-ctrl", "-no-reboot"),
            # Emulated instruction by instruction: that needs nothing of the host, and it does not
            # matter how long a cycle takes in the guest's own time.
            *("-accel", "tcg", "-cpu", "max"),
            *("-smp", "1", *memory),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)),
            *("-append", f"{_KERNEL_ARGUMENTS} {self.kernel_arguments}"),
            # The kernel talks on one serial line, the agent on another.
            *("-serial", f"file:{disks / 'console'}", "-serial", "stdio"),
        ]
        constant = [self.image.root, self.packages, self.source]
        files = [*constant, *(disks / name for name in _BLOCK_DEVICES)]
        if self.extra is not None:
            constant.append(self.extra)
            files.append(self.extra)
        for number, file in enumerate(files):
            drive: dict[str, Any] = {"id": f"vd{number}", "if": "none", "format": "raw"}
            drive |= {"readonly": "on" if file in constant else "off", "file": file}
            command += ["-drive", _options("", drive)[1:]]
            command += ["-device", f"virtio-blk-pci,drive=vd{number}"]
        for name, size in _NVDIMMS.items():
            backend = {"id": name, "size": size, "mem-path": disks / name, "share": "on"}
            command += ["-object", _options("memory-backend-file", backend)]
            command += ["-device", f"nvdimm,memdev={name}"]
        return command


def _options(kind: str, options: dict[str, Any]) -> str:
    # In QEMU's lists of options a comma is written twice.
    parts = (f"{name}={str(value).replace(',', ',,')}" for name, value in options.items())
    return ",".join([kind, *parts])


class Monitor:
    """QEMU's control socket. Machines that record or restore a snapshot have one."""

    def __init__(self, disks: Path) -> None:
        connection = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + 10
        while connection.connect_ex(str(self.path(disks))) and time.monotonic() < until:
            time.sleep(0.002)
        self._lines = connection.makefile("rw")
        connection.close()
        self._lines.readline()  # its greeting
        self._call("qmp_capabilities")
        # Shared memory, the NVDIMMs above all, is no part of a snapshot.
        ignore = {"capability": "x-ignore-shared", "state": True}
        self._call("migrate-set-capabilities", capabilities=[ignore])

    @staticmethod
    def path(disks: Path) -> Path:
        """Where it is."""
        return disks / "monitor"

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def save(self, snapshot: Snapshot) -> None:
        """Write the state of the devices; the machine stops."""
        self._call("migrate", uri=f"exec:cat > '{snapshot.devices}'")
        self._wait(snapshot)

    def restore(self, snapshot: Snapshot) -> None:
        """Read that state, and let the machine go on."""
        self._call("migrate-incoming", uri=f"exec:cat '{snapshot.devices}'")
        self._wait(snapshot)

    def _wait(self, snapshot: Snapshot) -> None:
        while (status := self._call("query-migrate").get("status")) != "completed":
            if status == "failed":
                raise OSError(f"QEMU cannot use {snapshot.devices}")
            time.sleep(0.002)

    def _call(self, command: str, **arguments: Any) -> dict[str, Any]:
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        for line in self._lines:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise OSError(f"QEMU, to {command}: {answer['error']['desc']}")
            if "return" in answer:
                result: dict[str, Any] = answer["return"]
                return result
        raise OSError(f"QEMU is gone, at {command}")
