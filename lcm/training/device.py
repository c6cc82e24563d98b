"""The machine that a run computes on: device, threads, precision, the C allocator."""

import ctypes
import os
import platform
from pathlib import Path

import torch

from lcm.errors import UserError, plural


def set_up(threads, device, precision, deterministic, allocator):
    """Everything below, once, before the first tensor.

    Returns (torch.device, autocast context, number of CPU threads).
    """
    if allocator:
        keep_pages()
    threads = set_threads(threads)
    device = choose_device(device)
    set_deterministic(deterministic, device)
    return device, set_precision(precision, device), threads


def choose_device(name):
    """`auto`, `cpu`, `cuda` or `cuda:1` -> torch.device. UserError where that GPU is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"device={name}: torch finds no usable NVIDIA GPU or driver; set device=cpu or "
            "device=auto"
        )
    device, count = torch.device(name if ":" in name else "cuda:0"), torch.cuda.device_count()
    if device.index >= count:
        raise UserError(
            f"device={name}: there are {count} GPUs, counted from cuda:0; choose one of them"
        )
    # What names no device, torch.cuda.manual_seed for example, then means this GPU.
    torch.cuda.set_device(device)
    return device


def describe_device(device):
    """Its name: "NVIDIA H200" or "cpu (Intel(R) Xeon(R) Processor @ 2.80GHz, 2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({processor()}, {plural(torch.get_num_threads(), 'thread')})"


def processor():
    """The processor's name."""
    return cpu_info("model name") or platform.processor() or platform.machine()


def cpu_info(key):
    """The first value of a key in /proc/cpuinfo, "" where there is none."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def set_precision(precision, device):
    """The autocast context in which the network runs with fp32, tf32 or bf16.

    Raises UserError where the device lacks it, or would only emulate it.
    """
    on_gpu = device.type == "cuda"
    bf16 = precision == "bf16"
    if precision == "tf32" and not (on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UserError(
            "precision=tf32: only NVIDIA GPUs from Ampere on have it; set precision=fp32"
        )
    if bf16 and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"precision=bf16: {torch.cuda.get_device_name(device)} has no bf16; set precision=fp32"
        )
    if bf16 and not on_gpu and not {"avx512_bf16", "amx_bf16"} & set(cpu_info("flags").split()):
        raise UserError(
            f"precision=bf16: this processor ({processor()}) has neither avx512_bf16 nor amx_bf16, "
            "so bf16 would be slower than fp32; set precision=fp32"
        )
    # By default cuDNN's convolutions use tf32: fp32 has to switch it off.
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # no cache of cast weights: it would keep a captured graph's tensors
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)


def set_deterministic(deterministic, device):
    """On a GPU: deterministic kernels alone, or those that cuDNN finds fastest.

    A CPU has no others.
    """
    # cuBLAS reads it once in a process, of which a later run may be deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # cuDNN's benchmark mode times kernels: the next process may choose others.
    if device.type == "cuda":
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = not deterministic
        # torch would fill each new tensor with NaN, a kernel each, although no result depends on it
        torch.utils.deterministic.fill_uninitialized_memory = False


def available_processors():
    """Processors that this process may use, by its affinity and its cgroup's quota."""
    count = len(os.sched_getaffinity(0))
    # A container's limit is a quota of processor time, which the affinity does not show. cgroup
    # v2: "200000 100000" are microseconds in each period, here 2 processors.
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return count
    return count if quota == "max" else min(count, max(1, int(quota) // int(period)))


def set_threads(threads):
    """Set torch's CPU threads and return their number.

    `auto`: all processors that this process may use, at most OMP_NUM_THREADS where the environment
    has it. The number decides in which order sums are formed; it therefore does not depend on the
    load of the machine.
    """
    if threads == "auto":
        threads = available_processors()
        # Of several, nested levels the outer one's.
        limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        if limit.isdigit():  # anything else is ignored, as OpenMP does
            threads = min(threads, max(1, int(limit)))
    torch.set_num_threads(threads)
    return threads


def keep_pages():
    """Let the C allocator keep freed pages, so that a training step causes no page faults."""
    # Numbers of glibc's malloc.h.
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # glibc alone has it
    # By default a large array is a mapping of its own, which free() returns to the system, and
    # each step faults its pages in again. Here all arrays are in one heap, which is never
    # trimmed and grows by 64 MiB at a time.
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 * 2**20)
