"""Turn images into a data set for training: of one size, in a zip or a folder; and look at one."""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from data import check, preview, split, stats
from data.convert import ON_MISMATCH, convert
from data.labels_file import with_labels
from data.limits import SET_PIXELS
from data.source import Size
from data.sources import open_source
from data.transforms import TRANSFORMS
from dnnlib.cli import GroupedCommand, Whole, check_apart, check_writable, heading, one_line_errors


class Resolution(click.ParamType):   # type: ignore[type-arg]
    """Width and height in pixels: `64x64` or `64,64`."""
    name = 'WxH'

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> Size:
        match = re.fullmatch(r'(\d{1,5})[x,](\d{1,5})', str(value))
        if match is None or int(match[1]) == 0 or int(match[2]) == 0:
            self.fail(f'{value!r} is not a width and a height in pixels such as 64x64', param, ctx)
        if int(match[1]) * int(match[2]) > SET_PIXELS:
            self.fail(f'{value!r} has more than {SET_PIXELS:,} pixels', param, ctx)
        return int(match[1]), int(match[2])


COMMANDS = {'check': check.main, 'stats': stats.main, 'preview': preview.main, 'split': split.main}


class Tool(GroupedCommand):
    """The conversion, unless the first word is the name of another command."""
    commands = COMMANDS

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None,   # type: ignore[override]
             **more: Any) -> Any:   # noqa: ANN401 (click's own)
        """Run as a program."""
        words = [*(sys.argv[1:] if args is None else args)]
        if words and words[0] in self.commands:
            return self.commands[words[0]].main(
                words[1:], prog_name=f'dataset_tool.py {words[0]}', **more)
        return super().main(words, prog_name=prog_name, **more)


files = heading('From and to')
method = heading('What to do with each image')


@click.command(cls=Tool, context_settings={'max_content_width': 100})
@files('--source', metavar='PATH', required=True,
       help='Source of the images: a folder (with its subfolders), a zip, a tar or a folder of '
            'tars, cifar-10-python.tar.gz or cifar-100-python.tar.gz (test:PATH for its test '
            'images), an IDX file '
            '(train-images-idx3-ubyte.gz) with its labels beside it, a folder *_lmdb of LSUN, a '
            '.parquet or a folder of them, an .npy or .npz, or the word digits. digits stands for '
            '1,797 scanned digits with labels, 16x16 unless --resolution is given; it needs '
            'scikit-learn.')
@files('--dest', metavar='PATH', required=True,
       help='Data set to write, outside of the source: a zip if the name ends in .zip, else a '
            'folder. A zip must be new, and a folder new or empty.')
@files('--overwrite', is_flag=True,
       help='Replace the zip, or the folder of a data set, that has the name of --dest.')
@files('--max-images', type=Whole(1), metavar='INT',
       help='Use only the first INT images of the source.  [default: all]')
@files('--labels', metavar='FILE',
       help='Labels, instead of those of the source: a CSV with a line `name,label` for each image '
            'or `name,number,number,...` for vectors, or JSON {"name": label, ...}. Words are '
            'classes in sorted order.')
@method('--transform', type=click.Choice(list(TRANSFORMS)), metavar='NAME',
        help='Way of cropping. center-crop cuts out the largest middle part with the aspect ratio '
             'of --resolution and resizes it. center-crop-wide cuts out the middle rows with the '
             'aspect ratio W:H of --resolution, resizes them and adds black bars to make them WxW; '
             'images smaller than WxH are skipped. center-crop-dhariwal halves by averaging, '
             'resizes bicubically and cuts out the middle square, as for ADM. All give RGB.  '
             '[default: no cropping; --resolution squeezes images of another shape]')
@method('--resolution', type=Resolution(), metavar='WxH',
        help='Width and height in pixels, such as 64x64 or 96,64. Images are resized with the '
             'Lanczos filter.  [default: the size of the images; IDX scans of 28x28 are padded to '
             '32x32]')
@method('--color', type=click.Choice(['grey', 'rgb', 'keep']),
        help='Convert every image to this kind. keep leaves alpha, 16 bits, CMYK and floats as '
             'they are, in .npy files [C, H, W].  [default: greyscale stays greyscale, all others '
             'become RGB]')
@method('--on-mismatch', type=click.Choice(ON_MISMATCH),
        help='What to do with images that are unreadable, unlike most (in size or colours), or not '
             'plain (palette, alpha, 16-bit, CMYK, turned by EXIF, several in a file). convert '
             'converts them and leaves out what is unreadable; skip leaves all of them out; error '
             'stops at the first.  [default: convert what is not plain, stop at all others]')
@method('--report', metavar='CSV',
        help='Write a line for every image that was not plain: what was found, what was done.')
@method('--workers', type=Whole(1, 1024), metavar='INT',
        help='Number of processes; the result does not depend on it.  [default: one for each '
             'processor]')
@one_line_errors
def main(source: str, dest: str, labels: str | None, report: str | None, **options: Any) -> None:   # noqa: ANN401 (click's own)
    """Turn images into a data set for train.py: PNG files of one size, with labels.

    The images may be BMP, GIF, JPEG, PNG, PPM, TIFF or WebP. Transparent parts become white, and
    16-bit values become 8-bit ones. The results must be of one size, all greyscale or all RGB.
    Arrays of other types or numbers of channels stay as they are, in .npy files, beside the mean
    and the standard deviation of each channel.

    Labels come from --labels, or from dataset.json in the source, {"labels": [["cats/1.png", 0],
    ...]}, where a label is a class from 0 or a list of numbers, for every image; without these,
    each top-level folder is a class, in sorted order.

    A conversion that was interrupted or killed is continued by the same command.

    Other commands, each with its own --help: dataset_tool.py check, stats, preview, split.

    Examples:
    # a first data set, which needs no download
    python dataset_tool.py --source=digits --dest=datasets/digits-16x16.zip

    # any folder of photographs, as 64x64 RGB
    python dataset_tool.py --source=photos --dest=datasets/photos-64x64.zip \\
        --transform=center-crop --resolution=64x64

    # the first thousand images of a data set, in greyscale, as a folder
    python dataset_tool.py --source=datasets/photos-64x64.zip --dest=datasets/grey \\
        --max-images=1000 --color=grey
    """
    check_apart({'--report': report}, {'--source': source, '--labels': labels, '--dest': dest})
    if report is not None:
        check_writable('--report', report)
    opened = open_source(source)
    if labels is not None:
        opened = with_labels(opened, labels)
    click.echo(convert(opened, dest, report=report, **options))


if __name__ == '__main__':
    main()
