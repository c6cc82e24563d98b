"""What a run prints: its settings before it starts, and its result beside the paper's."""

from lcm.errors import plural
from lcm.reporting.protocol import paper_comparison
from lcm.training.schedule import described


def print_start(config, data, complexity, state, directory, saved):
    """Print what will run; `state`: run.json; `saved`: the checkpoint to continue from, or None."""
    schedule = config["schedule"]
    notes = [*getattr(data, "notes", []), *getattr(data, "unused", [])]
    train, test = data.train(schedule["batch_size"], 0), data.test(schedule["test_batch_size"])
    device = (state.get("continued") or [state])[-1]["device"]
    lines = [
        f"network     {config['model']['name']} + {config['attention']['name']}, "
        f"{data.num_classes} classes: {complexity.params / 1e6:.3f} M parameters, "
        f"{complexity.gfloat:.3f} GFloat (the paper's count), "
        f"{complexity.macs / 1e9:.3f} G multiply-accumulates"
        f"{' at least' if complexity.uncounted else ''}",
        f"data        {config['data']['name']}: {plural(train.images, 'training image')}, "
        f"{plural(test.images, 'test image')}",
        *(f"            {note}" for note in notes),
        f"schedule    {schedule['name']}: {plural(schedule['epochs'], 'epoch')}, "
        f"batch {schedule['batch_size']}, {described(schedule)}",
        f"device      {device}, {config['precision']}{', compiled' if config['compile'] else ''}",
        f"run         {directory}, seed {config['seed']}",
    ]
    if saved:
        lines.append(f"continuing  from epoch {saved['epoch']}, step {saved['index']}")
    print("\n".join(lines), flush=True)


def best_and_last(rows):
    """The result of a run, from the rows of its metrics.jsonl: its last and its best epoch."""
    # Of several best epochs the first one.
    best = max(rows, key=lambda row: (row["test_top1"], -row["epoch"]))
    keys = ("epoch", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")
    return {key: rows[-1][key] for key in keys} | {
        "best_test_top1": best["test_top1"],
        "best_epoch": best["epoch"],
    }


def result_line(state):
    """The result of a finished run (its run.json), beside the paper's number where there is one."""
    result, epochs = state["result"], state["epochs"]
    line = (
        f"test top-1 {result['test_top1']:.2f} %, top-5 {result['test_top5']:.2f} % after the last "
        f"of {plural(epochs, 'epoch')} (best epoch {result['best_epoch']}: "
        f"{result['best_test_top1']:.2f} %)"
    )
    return "\n".join(filter(None, [line, paper_comparison(state)]))
