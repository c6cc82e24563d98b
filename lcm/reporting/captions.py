"""What pictures of trained networks say about them."""

from lcm.reporting.protocol import DATA_TITLE, NETWORK_TITLE

ATTENTION_TITLE = {
    "se": "SE",
    "cbam": "CBAM",
    "nonlocal": "Non-local",
    "gc": "GC",
    "lcm1": "LCM1",
    "lcm2": "LCM2",
}


def network_titles(states):
    """A title for each run.json, "ResNet-20 + SE"; with the seed where two would be the same."""
    found = []
    for state in states:
        attention = ATTENTION_TITLE.get(state["attention"], state["attention"])
        network = NETWORK_TITLE.get(state["model"], state["model"]).split(" ")[0]
        found.append(network if attention == "none" else f"{network} + {attention}")
    if len(set(found)) == len(found):
        return found
    return [f"{title}, seed {state['seed']}" for title, state in zip(found, states, strict=True)]


def length_and_seeds(states):
    """ "10 epochs, seed 0", "8 epochs, seeds 0 to 5" """
    epochs = " or ".join(map(str, sorted({state["epochs"] for state in states})))
    seeds = sorted({state["seed"] for state in states})
    together = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    words = f"{seeds[0]} to {seeds[-1]}" if together else ", ".join(map(str, seeds))
    return f"{epochs} epoch{'s' * (epochs != '1')}, seed{'s' * (len(seeds) > 1)} {words}"


def trained_on(states):
    """What networks of one data set were trained on: "CIFAR-10, 10 epochs, seed 0, 1 run each"."""
    data = states[0]["data"]
    words = f"{DATA_TITLE.get(data, data)}, {length_and_seeds(states)}"
    return f"{words}, 1 run each" if len(states) > 1 else words
