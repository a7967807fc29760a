"""What the unlearning step takes beside its time: the most memory that was held, and the device's energy.

Host memory is the kernel's own high-water mark of this process, set back when the step begins; device memory is what torch
held in tensors; energy is the whole device's by NVML, other processes' work included. What is not told stays None.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from worker.metrics import Cost

PROCESS = Path("/proc/self")
SET_BACK_PEAK = "5"  # proc(5), clear_refs


def start(device: torch.device) -> Callable[[], Cost]:
    """Begin to count; calling the result says what was taken since."""
    counted = set_back()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = energy(device)

    def spent() -> Cost:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        after = energy(device)
        return Cost(
            host_bytes=peak() if counted else None,
            device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            joules=None if before is None or after is None else after - before,
        )

    return spent


def set_back() -> bool:
    """Set the high-water mark to what is resident now; False where the kernel does not let us."""
    try:
        (PROCESS / "clear_refs").write_text(SET_BACK_PEAK)
    except OSError:
        return False
    return True


def peak() -> int | None:
    """The most bytes that were resident since the mark was set back."""
    lines = (PROCESS / "status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def energy(device: torch.device) -> float | None:
    """Joules that the device has used since its driver was loaded."""
    if device.type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    told = (
        nvml.nvmlInit_v2() == 0
        and nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) == 0
        and nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) == 0
    )
    return millijoules.value / 1000 if told else None
