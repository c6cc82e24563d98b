"""Evaluate a finished run: accuracy by class, the confusion matrix, every prediction.

    python scripts/evaluate.py runs/digits/resnet20/lcm2/seed0-*
    python scripts/evaluate.py runs/digits/resnet20/lcm2/seed0-* --out FOLDER

Prints the accuracy by class, and whether the total is that of run.json. Writes confusion.png, the
confusion matrix, and predictions.csv.
"""

from pathlib import Path

import checkout  # before lcm
import pandas
from sklearn.metrics import confusion_matrix

from lcm.errors import exit_on_user_error
from lcm.files import write
from lcm.reporting import figures
from lcm.reporting.captions import network_titles, trained_on
from lcm.reporting.confusion import by_class, draw
from lcm.runs.evaluation import evaluate
from lcm.runs.load import class_names


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__, config_dir=True)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for both files (default: the run directory)"
    )
    parser.add_argument(
        "--root", metavar="FOLDER", help="folder of the data set (default: the run's)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: auto")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], help="default: the run's")
    options = parser.parse_args(arguments)
    folder = options.out or options.run
    picture, table = folder / "confusion.png", folder / "predictions.csv"
    state, data, probabilities, labels = evaluate(
        options.run, options.root, options.device, options.precision
    )
    classes = class_names(data)
    highest, predicted = probabilities.max(1)
    matrix = confusion_matrix(labels, predicted, labels=range(len(classes)))
    print(by_class(matrix, classes))
    right, images = matrix.trace(), matrix.sum()
    top1, recorded = 100 * right / images, state["result"]["test_top1"]
    otherwise = (
        f"run.json has {recorded:.2f} %: another device or version rounds differently, and what a "
        "module keeps outside of parameters and buffers is not saved"
    )
    says = "as in run.json" if abs(top1 - recorded) <= 1e-6 else otherwise
    print(f"\ntop-1 {top1:.2f} % ({right} of {images}); {says}")

    columns = {"class": labels, "predicted": predicted}
    names = {key: [classes[i] for i in part.tolist()] for key, part in columns.items()}
    rows = pandas.DataFrame(names | {"probability": highest}).rename_axis("image")
    write(table, rows.to_csv(float_format="%.6f"))
    (title,) = network_titles([state])
    heading = f"{title} trained on {trained_on([state])}: test top-1 {top1:.2f} %"
    figures.save(draw(matrix, classes, heading), picture)
    print(f"{picture}, {table}")


if __name__ == "__main__":
    main()
