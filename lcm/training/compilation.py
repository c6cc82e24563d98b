"""torch.compile for training, before the first step."""

import torch

from lcm.copies import buffers_kept
from lcm.errors import UserError


def compiled(network, batch_size, image_size, autocast, layout):
    """The network's forward and backward pass compiled by torch.compile, for batches of one size.

    A smaller batch, an epoch's last, goes through the network uncompiled: compiling again, with
    dynamic sizes, takes half a minute, and torch may use that slower version for whole batches
    afterwards.

    Args:
        network: in training mode, on the device on which it will be trained.
        batch_size, image_size, layout: of the batches to come, float32 (batch_size, 3, image_size,
            image_size).
        autocast: the context that the forward pass will run in.

    Raises:
        UserError: torch.compile cannot compile here, for example without a C++ compiler.
    """
    device = next(network.parameters()).device
    # Shape, layout and autocast as in training: torch.compile guards on all three, and would
    # compile a second time for others.
    images = torch.zeros(batch_size, 3, image_size, image_size, device=device)
    fast = torch.compile(network, dynamic=False)
    try:
        # A forward pass in training mode moves the running statistics of batch norms.
        with buffers_kept(network):
            with autocast:
                logits = fast(images.contiguous(memory_format=layout))
            logits.float().square().mean().backward()  # compiles the backward pass too
    except Exception as error:
        # Any other error, out of memory for example, does not mean that no compiler is there.
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo", "triton")):
            raise
        # torch quotes all that the C++ compiler printed: the reason is its first "error: ".
        lines = [
            line.strip()
            for line in str(error).splitlines()
            if line.strip() and not line.startswith("backend=")
        ]
        reason = next(
            (line for line in lines if "error: " in line),
            lines[0] if lines else type(error).__name__,
        )
        raise UserError(
            f"compile=true: torch.compile cannot compile here ({reason}): it needs a C++ compiler "
            "(g++, or what the environment variable CXX names) and Python's header files; install "
            "them, or set compile=false"
        ) from error
    network.zero_grad()
    return lambda batch: (fast if len(batch) == batch_size else network)(batch)
