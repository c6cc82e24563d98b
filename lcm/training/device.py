"""The machine that a run computes on: device, threads, precision, the C allocator. Set up once, before the first tensor."""

import ctypes
import gc
import math
import os
import platform

import torch

from lcm.errors import UserError


def set_up(threads, device, precision, deterministic, allocator):
    """Everything below, once, before the first tensor. Returns (torch.device, autocast context, number of CPU threads)."""
    if allocator:
        keep_pages()
    threads = set_threads(threads)
    device = choose_device(device)
    set_deterministic(deterministic, device)
    return device, set_precision(precision, device), threads


def choose_device(name):
    """`auto`, `cpu`, `cuda` or `cuda:1` -> torch.device. Raises UserError where that GPU is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        found = "torch finds no usable NVIDIA GPU or driver"
        reason = found if torch.version.cuda else "this torch is built without CUDA"
        raise UserError(f"device={name}: {reason}; take device=cpu, or device=auto")
    device, count = torch.device(name if ":" in name else "cuda:0"), torch.cuda.device_count()
    if device.index >= count:
        raise UserError(
            f"device={name}: there are {count} GPUs, counted from cuda:0; take one of them"
        )
    torch.cuda.set_device(device)
    return device


def describe_device(device):
    """The device's name: "NVIDIA H200" or "cpu (Intel(R) Xeon(R) Processor @ 2.80GHz, 2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)})"


def processor():
    """The processor's name."""
    return cpu_info("model name") or platform.processor() or platform.machine()


def cpu_info(key):
    """The first value of a key in /proc/cpuinfo, '' where there is none."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), ""
            )
    except OSError:
        return ""


def set_precision(precision, device):
    """fp32, tf32 or bf16. Returns the autocast context to run the network in; raises UserError where the device lacks it."""
    gpu, bf16 = device.type == "cuda", precision == "bf16"
    if precision == "tf32" and (not gpu or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError(
            "precision=tf32: only NVIDIA GPUs from Ampere on have it; take precision=fp32"
        )
    if bf16 and gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"precision=bf16: {torch.cuda.get_device_name(device)} has no bf16; take precision=fp32"
        )
    if bf16 and not gpu and not {"avx512_bf16", "amx_bf16"} & set(cpu_info("flags").split()):
        raise UserError(
            f"precision=bf16: this processor ({processor()}) has neither avx512_bf16 nor amx_bf16, so bf16 would be slower "
            "than fp32; take precision=fp32"
        )
    if gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
            precision == "tf32"
        )
    # no cache of cast weights: it would keep a captured graph's tensors
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)


def set_deterministic(deterministic, device):
    """On a GPU: deterministic kernels alone, or those that cuDNN finds fastest. On a CPU all kernels are deterministic."""
    # cuBLAS reads it once in a process, of which a later run may be deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda":
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = not deterministic
        # torch would fill each new tensor with NaN: no result depends on one, and it costs a kernel each
        torch.utils.deterministic.fill_uninitialized_memory = False


def release_memory():
    """Free the memory of a finished run: reference cycles and the GPU allocator's cache. For the next run of this process."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no GPU was used


def available_processors():
    """Processors that this process may use, by its affinity and its cgroup's quota."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            count = min(count, max(1, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count


def set_threads(threads, say=print):
    """Set torch's CPU threads and return their number.

    `auto`: all processors that this process may use, at most OMP_NUM_THREADS where the environment has it (the parallel
    launcher gives each of its processes a share). The number decides in which order sums are formed. It therefore does not
    depend on the load of the machine; where other programs slow this process down, a warning says so.
    """
    if threads == "auto":
        threads = min(available_processors(), omp_limit())
    waited = share_waited()
    if waited > 0.2 and threads > 1:
        say(
            f"warning: other programs keep the processors busy (this one waited {waited:.0%} of its time so far): "
            f"{threads} threads may be slower than fewer; set threads=1, or wait"
        )
    torch.set_num_threads(threads)
    return threads


def omp_limit():
    """OMP_NUM_THREADS; of a list ("4,1") the first number, that of the outermost level. UserError where it is no number."""
    text = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = text.partition(",")[0].strip()
    if text and not first.isdigit():
        raise UserError(f"OMP_NUM_THREADS={text}: no number of threads; unset it, or set threads=")
    return max(1, int(first)) if text else math.inf


def share_waited(schedstat="/proc/self/schedstat"):
    """The share of its runnable time that this process waited for a processor; 0 where the system does not say."""
    try:
        with open(schedstat) as file:
            ran, waited = map(int, file.read().split()[:2])  # ns
    except (OSError, ValueError):
        return 0.0
    return waited / max(ran + waited, 1)


def keep_pages():
    """Let glibc's allocator keep freed pages, so that a training step causes no page faults. Returns whether it will."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 64 * 2**20))
    return all(mallopt(option, value) for option, value in settings)
