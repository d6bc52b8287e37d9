"""Detection of the machine, on simulated machines."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from recording_console import RecordingConsole

from bidsseg.errors import UsageError
from bidsseg.execution import machine as this_machine
from bidsseg.execution.machine import (
    Machine,
    Workers,
    available_cpus,
    available_memory_mb,
    choose_machine,
    choose_workers,
    cpu_flags,
    emulation,
    find_machine,
    peak_memory_mb,
)
from bidsseg.levels.train import train_level
from bidsseg.settings import Settings


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Values of the control group, and of one around it (``job/``), which the test sets."""
    values: dict[str, str] = {}
    monkeypatch.setattr(this_machine, "control_groups", lambda: [Path(), Path("job")])
    monkeypatch.setattr(this_machine, "_value", lambda group, name: values.get(str(group / name), ""))
    return values


def settings(**values: object) -> Settings:
    return Settings(Path("/bids"), Path("/out"), **values)  # type: ignore[arg-type]


def test_cpus_of_a_container(group: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    assert available_cpus() == 16
    group["cpu.max"] = "max 100000"
    assert available_cpus() == 16
    group["cpu.max"] = "350000 100000"
    assert available_cpus() == 3
    group["cpu.max"] = "50000 100000"
    assert available_cpus() == 1
    group.update({"cpu.max": "max 100000", "job/cpu.max": "200000 100000"})
    assert available_cpus() == 2


def test_memory_of_a_container(group: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8_000_000_000))
    assert available_memory_mb() == 8000
    group.update({"memory.max": "300000000", "memory.current": "120000000", "memory.stat": "inactive_file 20000000"})
    assert available_memory_mb() == 200
    group["memory.max"] = "max"
    assert available_memory_mb() == 8000
    group.update({"job/memory.max": "500000000", "job/memory.current": "200000000"})
    assert available_memory_mb() == 300
    group["memory.max"] = "300000000"
    assert available_memory_mb() == 200


def test_control_groups_contain_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM limits the groups around that of a task, whose memory.max is max."""
    (tmp_path / "self").write_text("4:pids:/other\n0::/job/step/task\n")
    monkeypatch.setattr(this_machine, "OWN_GROUP", tmp_path / "self")
    monkeypatch.setattr(this_machine, "GROUPS", tmp_path / "groups")
    names = [group.relative_to(tmp_path).as_posix() for group in this_machine.control_groups()]
    assert names == ["groups/job/step/task", "groups/job/step", "groups/job", "groups"]
    (tmp_path / "self").unlink()
    assert list(this_machine.control_groups()) == []


def test_limits_of_older_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In version 1, as on clusters with RHEL 8, each kind of limit has a hierarchy of its own."""
    groups = tmp_path / "groups"
    (tmp_path / "self").write_text("5:cpu,cpuacct:/docker/a\n4:memory:/slurm/job/step\n1:name=systemd:/x\n0::/x\n")
    monkeypatch.setattr(this_machine, "OWN_GROUP", tmp_path / "self")
    monkeypatch.setattr(this_machine, "GROUPS", groups)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8_000_000_000))
    assert (available_cpus(), available_memory_mb()) == (16, 8000)
    values = {
        "cpu/docker/a/cpu.cfs_quota_us": "-1",  # none
        "cpu/docker/a/cpu.cfs_period_us": "100000",
        "memory/slurm/job/step/memory.limit_in_bytes": "9223372036854771712",  # none
        "memory/slurm/job/step/memory.usage_in_bytes": "100000000",
        "memory/slurm/job/memory.limit_in_bytes": "300000000",
        "memory/slurm/job/memory.usage_in_bytes": "120000000",
        "memory/slurm/job/memory.stat": "inactive_file 0\ntotal_inactive_file 20000000\n",
    }
    for name, value in values.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{value}\n")
    assert (available_cpus(), available_memory_mb()) == (16, 200)
    (groups / "cpu/docker/a/cpu.cfs_quota_us").write_text("350000\n")
    assert available_cpus() == 3


def test_peak_memory_is_in_megabytes() -> None:
    assert 10 < peak_memory_mb() < 100_000


@pytest.mark.parametrize(
    ("flags", "asked", "precision"),
    [({"avx2"}, "auto", "fp32"), ({"avx2", "amx_bf16"}, "auto", "bf16"), ({"amx_bf16"}, "fp32", "fp32"),
     (set(), "bf16", "bf16")],
)  # fmt: skip
def test_precision(
    flags: set[str], asked: str, precision: str, group: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "cpu_flags", lambda: flags)
    monkeypatch.setattr(this_machine, "available_memory_mb", lambda: 10_000)
    machine = choose_machine(settings(device="cpu", precision=asked, n_cpus=1, memory_mb=4000))
    assert machine == Machine("cpu", precision, 1, 4000)
    assert choose_machine(settings(device="cpu", n_cpus=1, memory_mb=64_000)).memory_mb == 9000
    assert choose_machine(settings(device="cpu", n_cpus=1, threads=4)).threads == 1
    assert choose_machine(settings(device="cpu", n_cpus=4, threads=1)).threads == 1


@pytest.mark.parametrize(
    ("cpus", "memory_gb", "asked", "scans", "workers"),
    [
        (2, 99, {}, 9, None),
        (3, 99, {}, 9, None),
        (4, 99, {}, 9, Workers(2, 2, 49_500)),
        (7, 99, {}, 9, Workers(3, 2, 33_000)),
        (64, 99, {}, 9, Workers(9, 7, 11_000)),
        (64, 99, {}, 99, Workers(12, 5, 8250)),
        (64, 99, {}, 1, None),
        (64, 15, {}, 9, None),
        (64, 17, {}, 9, Workers(2, 32, 8500)),
        (64, 99, {"memory_mb": 16_000}, 9, Workers(2, 32, 8000)),
        (2, 99, {"threads": 1}, 9, Workers(2, 1, 49_500)),
        (2, 99, {"threads": 4}, 9, None),
        (64, 99, {"n_cpus": 4}, 9, Workers(2, 2, 49_500)),
        (64, 99, {"n_cpus": 4, "threads": 1}, 9, Workers(4, 1, 24_750)),
        (64, 99, {"n_cpus": 1}, 9, None),
    ],
)  # fmt: skip
def test_workers(
    cpus: int,
    memory_gb: int,
    asked: dict[str, int],
    scans: int,
    workers: Workers | None,
    group: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(this_machine, "available_cpus", lambda: cpus)
    monkeypatch.setattr(this_machine, "available_memory_mb", lambda: memory_gb * 1000 / this_machine.RESERVE)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    assert choose_workers(settings(device="cpu", **asked), scans, lambda machine: 8000) == workers


def test_processes_that_cannot_talk_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(this_machine, "available_memory_mb", lambda: 99_000)
    asked = settings(device="cpu", n_cpus=2, threads=1, report=(console := RecordingConsole()))
    assert choose_workers(asked, 2, lambda machine: this_machine.PROCESS_MB) is not None
    monkeypatch.setattr("socket.create_connection", refused)
    assert choose_workers(asked, 2, lambda machine: this_machine.PROCESS_MB) is None
    assert console.warnings == ["processes cannot communicate on this machine (no loopback network): using one process"]


@pytest.mark.parametrize(
    ("device", "devices", "memory_gb", "scans", "workers"),
    [
        ("auto", 1, 99, 9, Workers(3, 5, 8333)),
        ("auto", 2, 99, 9, Workers(6, 2, 8333)),
        ("auto", 2, 17, 9, Workers(2, 8, 25_000)),
        ("auto", 2, 9, 9, None),
        ("cuda:1", 2, 99, 9, Workers(3, 5, 8333)),
        ("auto", 2, 99, 2, Workers(2, 8, 25_000)),
    ],
)
def test_workers_share_what_cuda_devices_there_are(
    device: str,
    devices: int,
    memory_gb: int,
    scans: int,
    workers: Workers | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(this_machine, "available_cpus", lambda: 16)
    monkeypatch.setattr(this_machine, "available_memory_mb", lambda: memory_gb * 1000 / this_machine.RESERVE)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(major=8))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (25_001 / this_machine.RESERVE * 1e6, 0))
    assert choose_workers(settings(device=device), scans, lambda machine: 8000) == workers


@pytest.mark.parametrize(("device", "precision"), [("auto", "fp32"), ("cuda:1", "bf16")])
def test_a_cuda_device_that_only_emulates_bfloat16_computes_with_float32(
    device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch accepts bfloat16 on the first device, a Turing, and multiplies other numbers for it."""
    generation = {"cuda:0": 7, "cuda:1": 8}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **asked: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda name: SimpleNamespace(major=generation[name]))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda name: (10**10, 10**10))
    assert find_machine(device, "auto").precision == precision
    assert find_machine(device, "bf16").precision == "bf16"


def test_flags_are_read_on_linux() -> None:
    assert isinstance(cpu_flags(), set)
    if Path("/proc/cpuinfo").is_file():
        assert cpu_flags()


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("value", "precision"),
    [("AVX2", "fp32"), ("avx512_core", "fp32"), ("AVX512_CORE_BF16", "bf16"), ("ALL", "bf16"), ("", "bf16")],
)
def test_an_older_processor_can_be_simulated(
    variable: str, value: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables that limit oneDNN also limit the choice of the precision."""
    cpuinfo = "processor : 0\nflags : fpu avx2 avx512f avx512_bf16 amx_bf16\n"
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: cpuinfo if str(path) == "/proc/cpuinfo" else "")
    for name in this_machine.ISA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert cpu_flags() >= {"fpu", "avx2"}
    machine = choose_machine(settings(device="cpu", n_cpus=1))
    assert machine.precision == precision
    assert emulation(machine) is None
    warning = emulation(replace(machine, precision="bf16"))
    assert (warning is None) == (precision == "bf16")
    assert warning is None or "emulation is" in warning


@pytest.mark.parametrize(
    ("flags", "machine", "warns"),
    [
        ({"avx2"}, Machine("cpu", "bf16", 1, 1), True),
        ({"avx2"}, Machine("cpu", "fp32", 1, 1), False),
        ({"avx2"}, Machine("cuda:0", "bf16", 1, 1), False),
        ({"bf16"}, Machine("cpu", "bf16", 1, 1), False),
        (set(), Machine("cpu", "bf16", 1, 1), False),  # nothing is known of this processor
    ],
)
def test_who_asks_for_what_is_emulated_is_warned(
    flags: set[str], machine: Machine, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "cpu_flags", lambda: flags)
    assert (emulation(machine) is not None) == warns


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_machine(settings(n_cpus=1)).device == "cpu"
    with pytest.raises(UsageError, match="0 CUDA devices"):
        choose_machine(settings(device="cuda", n_cpus=1))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match="--device cuda:1"):
        choose_machine(settings(device="cuda:1", n_cpus=1))


def test_a_gpu_of_apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of Apple is used only on request, and computes with 32 bits."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(this_machine, "available_memory_mb", lambda: 10_000)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UsageError, match="--device mps: torch sees no GPU"):
        choose_machine(settings(device="mps", n_cpus=1))
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert choose_machine(settings(device="mps", n_cpus=1)) == Machine("mps", "fp32", 1, 9000)
    assert choose_machine(settings(device="auto", n_cpus=1)).device == "cpu"
    with pytest.raises(UsageError, match="leave --precision out"):
        choose_machine(settings(device="mps", precision="bf16", n_cpus=1))
    with pytest.raises(UsageError, match="trained on cpu or cuda"):
        train_level(settings(device="mps"))


@pytest.mark.gpu
def test_a_device_that_is_there() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    machine = choose_machine(settings(device="auto", n_cpus=1))
    assert machine.device == "cuda:0" and machine.memory_mb > 1000
