"""mini-ImageNet's crops: the regions and pixels of torchvision."""

import numpy as np
import pytest
import torch
from scenes import SIZES, by_torchvision, scene
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop, v2

from lcm.data.in_memory import keyed_generator
from lcm.data.mini_imagenet.crops import central_views, random_views, show, show_batch


def torchvision_boxes(width, height, draws):
    """(draws, 4) of torchvision's own top, left, height, width."""
    image = torch.empty(1, height, width)
    return np.array(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(draws)]
    )


def features(boxes, width, height):
    """What is compared: share of the area, log aspect, and position as a share of the free range."""
    top, left, h, w = np.asarray(boxes, float).T
    return {
        "area": h * w / (height * width),
        "aspect": np.log(w / h),
        "down": (top + 0.5) / (height - h + 1),
        "right": (left + 0.5) / (width - w + 1),
    }


def ours(draws, width=500, height=375):
    sizes = torch.tensor([[height, width]]).expand(draws, 2)
    return random_views(sizes, 224, keyed_generator("crop boxes"))[:, :4]


@pytest.mark.parametrize("width, height", [(500, 375), (120, 400)])
def test_crop_boxes_have_torchvisions_distribution(width, height):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = features(torchvision_boxes(width, height, 10_000), width, height)
    drawn = features(ours(100_000, width, height), width, height)
    for name, values in reference.items():
        assert ks_2samp(drawn[name], values).pvalue > 0.01, name


@pytest.mark.parametrize(
    "width, height", [(1000, 3), (3, 1000), (1001, 4), (4, 999), (1, 1), (2, 1)]
)
def test_where_no_box_fits_the_central_one_is_torchvisions(width, height):
    expected = torchvision_boxes(width, height, 30)
    drawn = ours(300, width, height)
    if min(width, height) > 2:
        assert len(drawn.unique(dim=0)) == 1 and np.array_equal(
            drawn.unique(dim=0), np.unique(expected, axis=0)
        )
    assert (drawn[:, 2:] >= 1).all() and (drawn >= 0).all()
    assert (drawn[:, 0] + drawn[:, 2] <= height).all() and (
        drawn[:, 1] + drawn[:, 3] <= width
    ).all()


def test_every_box_lies_in_its_image():
    sizes = torch.randint(1, 700, (50_000, 2), generator=keyed_generator("sizes"))
    top, left, height, width, *rest = random_views(sizes, 224, keyed_generator("boxes")).unbind(1)
    assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) >= 1
    assert ((top + height <= sizes[:, 0]) & (left + width <= sizes[:, 1])).all()
    assert [int(r.unique()) for r in rest] == [224, 224, 0, 0]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_torchvisions_on_the_cpu_and_as_matrix_products(size):
    image = scene(1, *size)
    array = np.array(image)
    views = random_views(
        torch.tensor([image.size[::-1]]).expand(6, 2), 224, keyed_generator("pixels")
    )
    mirror = torch.arange(6) % 2 == 0
    expected = (
        np.stack([by_torchvision(image, v, m) for v, m in zip(views.tolist(), mirror, strict=True)])
        + 0.0
    )
    shown = torch.stack([show(array, v, 224).permute(1, 2, 0) for v in views.tolist()])
    shown = torch.where(mirror[:, None, None, None], shown.flip(2), shown).numpy()
    assert show(array, views[0].tolist(), 224).permute(1, 2, 0).is_contiguous()
    difference = abs(shown - expected)
    assert difference.max() <= 1 and difference.mean() < 0.1
    pixels, block = (
        torch.from_numpy(array.reshape(-1, 3)),
        [n + 5 for n in views[:, 2:4].amax(0).tolist()],
    )
    for dtype, n in ((torch.float32, 6), (torch.float16, 2)):  # half precision is slow on a CPU
        starts, widths = torch.zeros(n, dtype=torch.int64), torch.full((n,), size[0])
        products = (
            show_batch(pixels, starts, widths, views[:n], mirror[:n], 224, block, dtype)
            .float()
            .numpy()
        )
        difference = abs(products - expected[:n])
        assert difference.mean() < 0.5 and difference.max() < 1.5, (
            dtype
        )  # the reference rounds to bytes twice


@pytest.mark.parametrize("size", [*SIZES, (84, 84), (1000, 40), (255, 256), (333, 501)])
def test_test_views_are_resize_256_and_centre_crop_224(size):
    image = scene(2, *size)
    expected = np.asarray(v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image))
    (view,) = central_views(torch.tensor([image.size[::-1]]), 224, 256).tolist()
    assert (
        abs(show(np.array(image), view, 224).permute(1, 2, 0).numpy().astype(int) - expected).max()
        <= 1
    )
