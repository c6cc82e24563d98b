"""Images of a photograph's size: a random region of each, as in the training of ImageNet networks.

Augmentation as in torchvision's reference training: a random region of a training image (Szegedy et
al., "Going Deeper with Convolutions", 2015) is resized to the network's size and mirrored with
probability 0.5; the short side of a test image is resized to 256/224 of that size and the central
square taken. docs/data.md says what a cache of decoded images changes.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

from lcm.data.image_cache import open_cache
from lcm.data.in_memory import Batches, keyed_generator
from lcm.errors import UserError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision's networks expect
STD = (0.229, 0.224, 0.225)


def short_side_of(side: int) -> int:
    """The short side that test images are resized to: 256 for 224."""
    return round(side / 0.875)


class Photographs:
    """Large images in class folders, decoded once into a cache.

    Each view is cut by torchvision's transforms, in loader processes or here. The fingerprint is a
    digest of the files' names and contents, and of the size that is kept.

    found       as `list_images` returns it
    cache_dir   the folder of the cache
    cache_size  short side of the cached images; None: images as they are
    """

    mean, std = MEAN, STD  # of the pixels in [0, 1]

    def __init__(
        self, name, num_classes, image_size, mirror, found, workers, cache_dir, cache_size
    ):
        self.name, self.num_classes, self.image_size = name, num_classes, image_size
        self.workers, self.mirror = workers, mirror
        if cache_size is not None and cache_size < short_side_of(image_size):
            raise UserError(
                f"data.cache_size={cache_size}: test images of {image_size} pixels are cut from a "
                f"short side of {short_side_of(image_size)}; set at least that, or null to store "
                "the images as they are."
            )
        self.classes = list(found["train"])
        files = {
            f"{half}/{name}/{path.name}": path
            for half, classes in found.items()
            for name, members in classes.items()
            for path in members
        }
        self.cache = open_cache(files, cache_dir, cache_size)
        self.fingerprint = self.cache.fingerprint
        self.labels = torch.tensor([self.classes.index(name.split("/")[1]) for name in files])
        self.train_images = sum(map(len, found["train"].values()))  # these come first

    def train(self, batch_size: int, seed: int) -> Batches:
        """The training images, shuffled and augmented by (seed, epoch)."""
        # By default 8 to 100 % of the area, with a ratio of the sides between 3/4 and 4/3.
        views = [v2.RandomResizedCrop(self.image_size, antialias=True)]
        views += [v2.RandomHorizontalFlip()] * self.mirror
        index = torch.arange(self.train_images)
        return Batches(Views(self, index, v2.Compose(views), seed), batch_size, self.workers)

    def test(self, batch_size: int) -> Batches:
        """The test images, sorted by class and name, not augmented."""
        side = self.image_size
        views = [v2.Resize(short_side_of(side), antialias=True), v2.CenterCrop(side)]
        index = torch.arange(self.train_images, len(self.labels))
        return Batches(Views(self, index, v2.Compose(views), None), batch_size, self.workers)


class Views:
    """The images `index` of `photographs`, each in its view.

    view    a transform of torchvision: uint8 (3, H, W) -> (3, side, side)
    seed    of all random numbers; None: the stored order (test sets)
    """

    mean, std = MEAN, STD

    def __init__(self, photographs, index: Tensor, view, seed):
        self.photographs, self.index, self.view, self.seed = photographs, index, view, seed

    def __len__(self) -> int:
        return len(self.index)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """What an epoch shows: the images in its order, and a seed for each."""
        index = self.index
        if self.seed is None:
            # The views of a test draw nothing: any seed does.
            return index, torch.zeros_like(index)
        order = torch.randperm(len(index), generator=keyed_generator(self.seed, epoch, "order"))
        # With a seed of its own an image looks the same in whatever batch and worker it is cut.
        # 2**62: the seeds are int64.
        crop = keyed_generator(self.seed, epoch, "crop")
        return index[order], torch.randint(2**62, (len(index),), generator=crop)

    def assemble(self, index: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """A raw batch: each image in its view, drawn by its seed."""
        side = self.photographs.image_size
        batch = torch.empty(len(index), side, side, 3, dtype=torch.uint8)
        # The transforms draw from the global generator.
        # Only the CPU's is saved and seeded: torch.manual_seed would seed the GPUs too, and to
        # save theirs fork_rng would start CUDA, which a forked worker cannot.
        with torch.random.fork_rng(devices=[]):
            for out, i, seed in zip(batch, index.tolist(), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                image = torch.from_numpy(self.photographs.cache.image(i)).permute(2, 0, 1)
                out.copy_(self.view(image).permute(1, 2, 0))
        return batch, self.photographs.labels[index]
