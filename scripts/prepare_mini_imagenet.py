"""Make data/mini-imagenet from a copy of mini-ImageNet.

python scripts/prepare_mini_imagenet.py COPY data/mini-imagenet

COPY holds 100 class folders of 600 images, alone or in train/, val/ and test/; or images/ with
n0153282900000005.jpg, ...; or train/ and test/ of class folders with 500 and 100 images.

If the copy has problems, all of them are listed and the exit code is 2.
"""

import checkout  # before lcm

from lcm.data.mini_imagenet import prepare
from lcm.errors import exit_on_user_error


@exit_on_user_error
def main():
    parser = checkout.parser(__doc__)
    parser.add_argument("source", help="folder with the images")
    parser.add_argument("destination", help="folder for train/<wnid>/* and test/<wnid>/*")
    parser.add_argument("--allow-partial", action="store_true", help="accept an incomplete copy")
    print(prepare(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
