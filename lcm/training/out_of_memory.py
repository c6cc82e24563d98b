"""Out-of-memory errors of the device and the host: recognised and explained."""

import errno

from lcm.errors import UserError

# RuntimeErrors of the CPU's allocator, oneDNN, C++, CUDA (another process took the rest), cuBLAS
WORDS = (
    "DefaultCPUAllocator",
    "could not create a memory object",
    "std::bad_alloc",
    "out of memory",
    "_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error):
    """Whether an exception means that memory ran out."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in WORDS)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


def explained(error, device):
    """The UserError for an exception that means that memory ran out; any other one as it is.

    device: as the config names it.
    """
    if not is_out_of_memory(error):
        return error
    found = UserError(
        f"out of memory on device={device}: lower schedule.batch_size or "
        "schedule.test_batch_size, use model.memory=linear (CIFAR DenseNets) or precision=bf16 "
        "(where the device has it), capture=false (on a GPU), or start fewer runs at once; what "
        "was saved is intact"
    )
    # The caller raises it: `raise ... from` would be too early here.
    found.__cause__ = error
    return found
