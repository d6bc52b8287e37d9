"""The resources of this machine: writable folders, threads, memory, device and precision."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bidsseg.errors import OutputNotWritable, UsageError
from bidsseg.settings import Settings

BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
"""CPU flags (x86, then ARM) of the instructions that multiply bfloat16 numbers."""

CUDA_BF16 = 8
"""First generation (compute capability) of NVIDIA's GPUs with these instructions; AMD's have them."""

ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that restrict oneDNN, which computes the convolutions, to the instructions of an older processor."""
ISA_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of these variables without instructions for bfloat16."""

OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""File with the names of this process's control groups, and folder of all groups."""
LIMITING = {"", "memory", "cpu"}
"""Controllers whose limits count: those of version 1 have folders of their names, the one of version 2 has no name."""

RESERVE = 0.9
"""Share of the free memory that a run may use; the rest is a reserve."""

PROCESS_THREADS = 2
"""With more threads, another process segments more scans per hour; with fewer, memory is wasted."""

PROCESS_MB = 2000
"""Memory (MB) with which a process predicts a typical head in one piece with most models."""


@dataclass(frozen=True)
class Machine:
    """The resources of a run.

    Attributes:
        device: ``cpu``, ``cuda:N`` or ``mps``.
        precision: ``bf16`` or ``fp32``.
        threads: threads of the network on the CPU.
        memory_mb: memory (MB) of the device for the run.
    """

    device: str
    precision: str
    threads: int
    memory_mb: int

    @property
    def number_bytes(self) -> int:
        """Size of the numbers in the computations of the network."""
        return 2 if self.precision == "bf16" else 4


def prepare_environment(settings: Settings) -> None:
    """Point libraries to a writable folder if the home or temporary folder of the machine is not writable."""
    scratch = settings.work_dir
    if scratch is not None and not settings.dry_run:
        try:
            scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputNotWritable(f"--work-dir {scratch}: {error.strerror}; choose another folder") from error
        tempfile.tempdir = os.environ["TMPDIR"] = str(scratch.resolve())
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # a container with a read-only root: only shared memory is writable
        tempfile.tempdir = os.environ["TMPDIR"] = "/dev/shm"
    home = os.environ.get("HOME", "")
    if not (home and Path(home).is_dir() and os.access(home, os.W_OK)):
        os.environ["HOME"] = tempfile.gettempdir()


def choose_machine(settings: Settings) -> Machine:
    """Return the requested machine, with every ``auto`` and None resolved, and set the threads of torch."""
    import torch

    threads = settings.n_cpus or available_cpus()
    threads = min(threads, settings.threads or threads)
    torch.set_num_threads(threads)
    return find_machine(settings.device, settings.precision, settings.memory_mb)


def find_machine(device: str, precision: str, memory_mb: int | None = None) -> Machine:
    """Return the requested machine, with every ``auto`` and None resolved; torch keeps its threads and settings.

    Raises:
        UsageError: the device is not in this machine, or cannot compute with the precision.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    if device == "mps" and precision == "bf16":
        raise UsageError("--device mps computes with --precision fp32: leave --precision out")
    if device in ("cpu", "mps"):
        bf16, free = device == "cpu" and cpu_precision() == "bf16", available_memory_mb()
    else:
        device = device if ":" in device else "cuda:0"
        bf16, free = cuda_has_bf16(device), torch.cuda.mem_get_info(device)[0] // 10**6
    if precision == "auto":
        precision = "bf16" if bf16 else "fp32"
    limit = int(free * RESERVE)
    return Machine(device, precision, torch.get_num_threads(), min(limit, memory_mb or limit))


def cpu_precision() -> str:
    """Return the fastest precision of this processor, ``bf16`` or ``fp32``."""
    return "bf16" if BF16_FLAGS & cpu_flags() else "fp32"


def emulation(machine: Machine) -> str | None:
    """Return a warning if this processor only emulates the precision, which is very slow; otherwise None."""
    if machine.device != "cpu" or machine.precision != "bf16":
        return None
    flags = cpu_flags()
    if not flags or flags & BF16_FLAGS:
        return None
    return (
        "--precision bf16: this processor has no bfloat16 instructions; emulation is up to hundreds of times slower: "
        "use --precision fp32 or omit the flag"
    )


def check_device(device: str) -> None:
    """Raise UsageError if a requested device is not in this machine."""
    if device in ("auto", "cpu"):
        return
    if device == "mps":
        import torch

        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: torch sees no GPU of Apple here; leave the flag out, or give cpu")
        return
    count = cuda_count()
    if int(device.partition(":")[2] or 0) >= count:
        raise UsageError(f"--device {device}: torch sees {count} CUDA devices; choose another, or cpu")


@dataclass(frozen=True)
class Workers:
    """Processes of this machine that segment in parallel.

    Attributes:
        threads: threads of each process.
        memory_mb: memory (MB) of the device for each process.
    """

    count: int
    threads: int
    memory_mb: int


def choose_workers(settings: Settings, scans: int, process_mb: Callable[[Machine], int]) -> Workers | None:
    """Return as many processes as scans, CPUs and memory allow; None if only one fits.

    Args:
        process_mb: returns the memory (MB) of a process on a machine.
    """
    cpus = settings.n_cpus or available_cpus()
    count = min(scans, cpus // min(cpus, settings.threads or PROCESS_THREADS))
    if count < 2:
        return None
    keep_freed_memory()  # before torch is imported, in case this process does all the work itself
    machine = choose_machine(settings)
    devices = cuda_count() if settings.device == "auto" and machine.device != "cpu" else 1
    each_mb = process_mb(machine)
    count = min(count, devices * (machine.memory_mb // each_mb), int(available_memory_mb() * RESERVE) // each_mb)
    if count < 2:
        return None
    if not has_loopback():
        settings.report.warn("processes cannot communicate on this machine (no loopback network): using one process")
        return None
    return Workers(count, settings.threads or cpus // count, machine.memory_mb // -(-count // devices))


def choose_processes(settings: Settings, tasks: int, process_mb: int) -> int:
    """Return how many processes of a thread and a memory each do tasks that need no network: at least one."""
    memory_mb = int(available_memory_mb() * RESERVE)
    room = min(memory_mb, settings.memory_mb or memory_mb) // process_mb
    return max(1, min(tasks, settings.n_cpus or available_cpus(), room))


def has_loopback() -> bool:
    """Return whether processes of this machine can communicate, which needs a network interface in a container."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=1).close()
    except OSError:
        return False
    return True


def cuda_count() -> int:
    """Return the number of CUDA devices for this process."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cuda_has_bf16(device: str) -> bool:
    """Return whether a CUDA device has instructions for bfloat16; torch also accepts devices that emulate it."""
    import torch

    return bool(torch.version.hip) or torch.cuda.get_device_properties(device).major >= CUDA_BF16


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks for later use, instead of clearing new pages.

    Training allocates the same large blocks in each step, segmentation in each pass and scan. Call it before torch is
    imported.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    trim_threshold, mmap_max = -1, -4  # <malloc.h>
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def share_cores() -> None:
    """Let threads that wait for each other sleep instead of keeping a core busy. Call it before torch is imported.

    Otherwise, if other programs use the cores too, a thread spins while the one that it waits for cannot run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def release_freed_memory() -> None:
    """Return freed memory that ``keep_freed_memory`` holds to the system; otherwise, gaps add up over many scans."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_cpus() -> int:
    """Return the number of CPUs for this process, from its affinity and the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in control_groups():
        older = [_value(group, "cpu.cfs_quota_us"), _value(group, "cpu.cfs_period_us")]
        quota = _value(group, "cpu.max").split() or older
        if all(each.isdigit() for each in quota):
            count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return count


def available_memory_mb() -> int:
    """Return the memory (MB) that this process can still allocate, within the limit of its container."""
    import psutil

    free: int = psutil.virtual_memory().available
    for group in control_groups():
        limit = _value(group, "memory.max") or _value(group, "memory.limit_in_bytes")
        used = _value(group, "memory.current") or _value(group, "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit():
            words = _value(group, "memory.stat").split()
            key = next((key for key in ("total_inactive_file", "inactive_file") if key in words), None)
            cached = int(words[words.index(key) + 1]) if key else 0
            free = min(free, max(0, int(limit) - int(used) + cached))  # cached files are dropped on demand
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if addresses != resource.RLIM_INFINITY:
        free = min(free, max(0, addresses - psutil.Process().memory_info().vms))
    return free // 10**6


def peak_memory_mb() -> int:
    """Return the peak memory (MB) of this process so far.

    On Linux, getrusage includes the peak of the parent process at the start.
    """
    import sys

    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (10**6 if sys.platform == "darwin" else 1000)


def check_memory_used(limit_mb: int | None) -> None:
    """Raise UsageError if this process holds more memory (MB) than a limit; pages of mapped files do not count."""
    if limit_mb is None:
        return
    used_mb = memory_used_mb()
    if used_mb > limit_mb:
        raise UsageError(
            f"cannot be done in --mem {limit_mb}M: the training holds {used_mb} MB; give it more, or a recipe with a "
            "smaller shape or network"
        )


def memory_used_mb() -> int:
    """Return the memory (MB) that this process holds, without the pages of files that the system can drop."""
    import psutil

    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0)) // 10**6


def cpu_flags() -> set[str]:
    """Return the usable instruction sets of the CPU, by their Linux names; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
    held_down = any(os.environ.get(name, "").upper() in ISA_WITHOUT_BF16 for name in ISA_VARIABLES)
    return flags - BF16_FLAGS if held_down else flags


def control_groups() -> Iterator[Path]:
    """Yield the control groups (version 2 or 1) of this process and those that contain them: the limits of all hold."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        for controller in LIMITING & set(controllers.split(",")):
            top = GROUPS / controller
            own = top / name.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _value(group: Path, name: str) -> str:
    """Return a value of a control group, empty if there is none."""
    try:
        return (group / name).read_text().strip()
    except OSError:
        return ""
