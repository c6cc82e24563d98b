"""A finished run's network on the test images again, as after its last epoch."""

import torch

from lcm.runs.load import data_of, load_run, read_finished
from lcm.training import device as machine


def evaluate(directory, root=None, device="auto", precision=None):
    """What a finished run's network says of each test image, in the test set's order.

    root: folder of the data set; None: that of the training. precision: None for that of the run.
    Returns (run.json, the data set, probabilities float32 (N, classes), labels (N,)), on the CPU.
    Raises UserError.
    """
    state = read_finished(directory)
    network, config = load_run(directory)
    device, autocast, _ = machine.set_up(
        min(state.get("threads", 1), machine.available_processors()),  # which decide on rounding
        device=device,
        precision=precision or config["precision"],
        deterministic=config["deterministic"],
        allocator=config["allocator"],
    )
    data = data_of([directory], [state], root)
    layout = torch.channels_last if config["channels_last"] else torch.contiguous_format
    network.to(device, memory_format=layout)
    batches = data.test(config["schedule"]["test_batch_size"])
    found = []
    with torch.inference_mode():
        # Any epoch would do: test images come in the same order in each.
        for raw in batches.iterate(1):
            images, labels = batches.prepare(raw, device)
            with autocast:
                logits = network(images.contiguous(memory_format=layout))
            found.append((logits.float().softmax(1).cpu(), labels.cpu()))
    probabilities, labels = map(torch.cat, zip(*found, strict=True))
    return state, data, probabilities, labels
