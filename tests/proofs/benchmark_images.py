"""Images per second of the cached pipeline for mini-ImageNet beside torchvision's transforms, on the same files.

python scripts/benchmark_images.py data/mini-imagenet            # any prepared copy; 84x84 shows the hard case
python scripts/benchmark_images.py data/mini-imagenet --json FILE

Two sets are made from the copy: its files as they are, and the same pictures enlarged to 500x375, the size of ImageNet's.
On each, whole epochs of training batches of 64 are timed in turn, round after round, in one process tree; the medians count.
  torchvision  ImageFolder, RandomResizedCrop, mirror, normalisation (the transforms of its reference training), DataLoader
  plain        data.cache=false: the same transforms, normalised a batch at a time
  cached       data.cache=true: no loader processes, as many threads as torch has
CPU seconds are those of the process and its loader processes; unlike images/s they mean something on a busy machine. With a GPU,
the time to make a batch there is printed beside a training step of ResNet-50.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from lcm.data import MiniImageNet
from lcm.data.mini_imagenet.dataset import MEAN, STD
from lcm.errors import exit_on_user_error
from lcm.training.device import keep_pages

BATCH = 64


def choose_images(root: Path, count: int) -> list[Path]:
    """`count` training images, spread over the classes, as paths below `root`/train."""
    folders = [sorted(folder.iterdir()) for folder in sorted((root / "train").iterdir())]
    in_turn = [files[i] for i in range(max(map(len, folders))) for files in folders if i < len(files)]
    return [path.relative_to(root / "train") for path in in_turn[:count]]


def make_set(root: Path, images: list[Path], target: Path, size=None) -> Path:
    """The images as a small set of their own: copied, or enlarged to `size` and saved as JPEG files of quality 95."""
    for image in images:
        path = target / "train" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            shutil.copyfile(root / "train" / image, path)
        else:
            Image.open(root / "train" / image).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(
                path, quality=95
            )
    for folder in (target / "train").iterdir():  # a data set has a test half
        (target / "test" / folder.name).mkdir(parents=True)
        first = min(folder.iterdir())
        shutil.copyfile(first, target / "test" / folder.name / first.name)
    return target


class TorchvisionLoader:
    """What most training scripts do."""

    def __init__(self, root: Path, workers: int):
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        steps = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self.loader = torch.utils.data.DataLoader(
            ImageFolder(root / "train", v2.Compose(steps)), BATCH, shuffle=True, num_workers=workers,
            persistent_workers=workers > 0,
        )  # fmt: skip

    def epoch(self, number):
        return sum(len(images) for images, _ in self.loader)

    def processes(self):
        return [worker.pid for worker in getattr(self.loader._iterator, "_workers", [])]


class OurBatches:
    def __init__(self, data_set):
        self.batches = data_set.train(BATCH, seed=0)

    def epoch(self, number):
        return sum(len(self.batches.prepare(raw, "cpu")[0]) for raw in self.batches.iterate(number))

    def processes(self):
        return []


def cpu_seconds(processes) -> float:
    """Of this process, its children that have ended, and the living `processes` (Linux)."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def compare(root: Path, workers: int, rounds: int) -> dict:
    """{name: {"images_per_second", "cpu_ms"}, medians over the rounds}, and what the cache cost once."""
    classes = len(list((root / "train").iterdir()))
    started = time.perf_counter()
    cached = MiniImageNet(num_classes=classes, root=root)
    made = time.perf_counter()
    MiniImageNet(num_classes=classes, root=root)
    opened = time.perf_counter()
    files = len(cached.train(BATCH, 0).index) + len(cached.test(BATCH).index)
    plain = MiniImageNet(num_classes=classes, root=root, cache=False, workers=workers)
    pipelines = {
        "torchvision": TorchvisionLoader(root, workers), "plain": OurBatches(plain), "cached": OurBatches(cached),
    }  # fmt: skip
    measured = {name: [] for name in pipelines}
    for number in range(rounds + 1):
        for name, pipeline in pipelines.items():
            before, start = cpu_seconds(pipeline.processes()), time.perf_counter()
            images = pipeline.epoch(number)
            seconds, cpu = time.perf_counter() - start, cpu_seconds(pipeline.processes()) - before
            if number:  # the first round starts the workers and warms the caches
                measured[name].append((images / seconds, 1000 * cpu / images))
    result = {
        name: {"images_per_second": statistics.median(r), "cpu_ms": statistics.median(c)}
        for name, (r, c) in ((name, zip(*values, strict=True)) for name, values in measured.items())
    }
    result["cache"] = {
        "files": files, "made_ms_per_image": 1000 * (made - started) / files,
        "opened_ms_per_image": 1000 * (opened - made) / files,
        "bytes_per_image": cached._pictures.cache.pixels.nbytes / files,
    }  # fmt: skip
    return result


def on_gpu(root: Path, repeats: int = 30) -> dict:
    """Milliseconds on the GPU: making a batch of 64, and training steps of ResNet-50 on it, for each precision."""
    from torchvision.models import resnet50

    device = torch.device("cuda")
    batches = MiniImageNet(num_classes=len(list((root / "train").iterdir())), root=root).train(BATCH, seed=0)
    raws = [raw for raw in batches.iterate(0) if len(raw[0]) == BATCH]
    network = resnet50(num_classes=100).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, fused=True)
    images, labels = batches.prepare(raws[0], device)

    def step(enabled):
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def milliseconds(work):
        for i in range(10):
            work(i)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(repeats):
            work(i)
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start) / repeats

    return {
        "gpu": torch.cuda.get_device_name(),
        "batch_ms": milliseconds(lambda i: batches.prepare(raws[i % len(raws)], device)),
        "resnet50_fp32_ms": milliseconds(lambda i: step(False)),
        "resnet50_bf16_ms": milliseconds(lambda i: step(True)),
    }


@exit_on_user_error
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", type=Path, help="a folder with train/<wnid>/*")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="loader processes of torchvision and plain")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    keep_pages()  # as train.py does; loader processes inherit it
    images = choose_images(options.root, options.images)
    figures = {
        "images": len(images),
        "threads": torch.get_num_threads(),
        "workers": options.workers,
        "rounds": options.rounds,
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name, size in (("500x375", (500, 375)), ("as they are", None)):
            root = make_set(options.root, images, Path(temporary) / name, size)
            kilobytes = sum(path.stat().st_size for path in root.rglob("train/*/*")) / len(images) / 1000
            figures[name] = result = compare(root, options.workers, options.rounds)
            print(
                f"\n{name}: {len(images)} files of {kilobytes:.0f} kB, {options.workers} workers, {torch.get_num_threads()} threads"
            )
            reference = result["torchvision"]
            for pipeline in ("torchvision", "plain", "cached"):
                speed, cpu = result[pipeline]["images_per_second"], result[pipeline]["cpu_ms"]
                print(
                    f"  {pipeline:12}{speed:8.0f} images/s  {speed / reference['images_per_second']:6.2f} x   "
                    f"{cpu:6.2f} CPU ms an image  {reference['cpu_ms'] / cpu:6.2f} x"
                )
            cache = result["cache"]
            made, opened = cache["made_ms_per_image"], cache["opened_ms_per_image"]
            print(
                f"  the cache, once: {made:.2f} ms an image; to open and check it, {opened:.3f} ms. For 60,000 such images: "
                f"{60 * made:.0f} s, {60 * opened:.0f} s, {60e-6 * cache['bytes_per_image']:.1f} GB"
            )
            if torch.cuda.is_available():
                figures[name]["gpu"] = gpu = on_gpu(root)
                print(
                    f"  {gpu['gpu']}: a batch of {BATCH} in {gpu['batch_ms']:.2f} ms; ResNet-50's step takes "
                    f"{gpu['resnet50_fp32_ms']:.1f} ms in fp32, {gpu['resnet50_bf16_ms']:.1f} ms in bf16"
                )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
