"""Sweeps over sampler settings: networks are opened, their images drawn and judged, point by point.

    sweep = Sweep(judge, device=device)
    points = sweep.plan(networks('runs/mine'), combinations({'num_steps': [8, 16]}), protocol)
    with Table('out/sweep', 'sweep.csv') as table:
        rows = measure_points(points, table, sweep)
    best, cheapest = report(rows, 'fid')
"""

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints.diffusers import is_diffusers
from checkpoints.open import open_network
from checkpoints.reconstruct import reconstructed
from dnnlib.cli import with_flags
from evaluation.blocks import summary
from evaluation.generated import GeneratedImages, digest_of
from evaluation.nfe_table import IMPOSSIBLE, gap, steps_for
from evaluation.search import effect_of
from evaluation.settings import FLAGS, spelled, text
from evaluation.table import Network, Point, Protocol, RefusedError, Row
from limpid.adaptive import ADAPTIVE
from limpid.denoiser import traits
from limpid.samplers import Churn
from limpid.seeds import generate
from limpid.solvers import MULTISTEP
from metrics.definitions import names_of
from metrics.judge import PARAMETERS, Judge
from metrics.one_pass import Measured
from options.network import Opened, class_numbers, drawing_labels, planned
from torch_utils import checkpoint, distributed
from training.run_folder import SNAPSHOT, files_of

PROBED = 64            # images whose mean is the NFE of samplers that choose their steps


def networks(specs: str, weights: str | None = None) -> list[Network]:
    """Read names of networks, separated by commas; the folder of a run means all its snapshots.

    The oldest snapshot comes first. `weights` are names, separated by commas, each of which is
    tried with every network. Raises ValueError for a folder without snapshots.
    """
    paths: list[str] = []
    for spec in specs.split(','):
        if not os.path.isdir(spec) or is_diffusers(spec):
            paths.append(spec)
            continue
        snapshots = files_of(Path(spec), SNAPSHOT)
        if not snapshots:
            raise ValueError(f'--network={spec} is a folder without network-snapshot-*.pkl: '
                             'name the folder of a run, or a file')
        paths += map(str, snapshots)
    names = weights.split(',') if weights else [None]
    return [Network(path, name) for path in paths for name in names]


def averages(run_dir: str, widths: Sequence[float], folder: Path) -> list[Network]:
    """Reconstruct power-function averages of a run at its last snapshot, and write them.

    Each of the relative `widths` becomes a file in `folder`; collective.
    """
    made = []
    for width in widths:
        path = folder / f'power-{width:g}.pkl'

        def write(path: Path = path, width: float = width) -> None:
            checkpoint.save(reconstructed(run_dir, width)[0], path)

        distributed.on_rank_0(write)
        made.append(Network(str(path)))
    return made


class Sweep:
    """A judge of points, which draws their images; networks are opened one after the other.

    `classes`, `rng` and `batch` are as in GeneratedImages, `draw` as in Labels; `opening` are
    further arguments of open_network, for all networks. Collective.
    """

    def __init__(self, judge: Judge, *, device: torch.device,
                 classes: Sequence[int | str] | None = None, rng: str | None = None,
                 batch: int | str = 64, draw: str = 'even',
                 opening: Mapping[str, Any] | None = None) -> None:
        self.draw = draw
        self.judge, self.device, self.batch = judge, device, batch
        self.classes, self.rng, self.opening = classes, rng, dict(opening or {})
        self.metric = names_of(judge.metrics[0], judge.main)[0]
        self._opened: dict[tuple[str, str | None], Any] = {}
        self._told: set[str] = set()

    def opened(self, network: Network, options: Mapping[str, Any]) -> list[Any]:
        """Open a network and its guide, if it has one; those of the last call are kept."""
        guide = options.get('guide_network')
        if options.get('guidance') in (None, 1):
            guide = None   # it is not used
        wanted = [(network.path, network.weights), *([(guide, None)] if guide is not None else [])]
        # keep no more networks in memory than needed
        self._opened = {key: net for key, net in self._opened.items() if key in wanted}
        for key in wanted:
            if key not in self._opened:
                opening = self.opening if key == wanted[0] or is_diffusers(key[0]) else {}
                self._opened[key] = open_network(key[0], self.device, key[1], **opening)
                if key == wanted[0]:
                    drawing_labels(self._opened[key], self.draw)
        return [self._opened[key] for key in wanted]

    def drawing(self, network: Network, options: Mapping[str, Any]) -> Opened:
        """Make a network's sampler; raise RefusedError for options that do not fit."""
        networks = self.opened(network, options)
        try:
            drawing = planned(networks, options)
        except ValueError as error:
            raise RefusedError(str(error)) from None
        self._say(drawing.notes)
        return drawing

    def images(self, drawing: Opened, network: Network, seeds: range) -> GeneratedImages:
        return GeneratedImages(drawing.net, drawing.plan, seeds, device=self.device,
                               classes=self.classes, rng=self.rng, batch=self.batch,
                               source=network.path)

    def plan(self, networks: Iterable[Network], options: Sequence[Mapping[str, Any]],
             protocol: Protocol) -> list[Point]:
        """Return the points of all options with each network; of equal points only the first."""
        points: dict[str, Point] = {}
        for network in networks:
            for given in options:
                point = self.point(network, given, protocol)
                points.setdefault(point.key, point)
        return list(points.values())

    def plan_nfe(self, networks: Iterable[Network], options: Sequence[Mapping[str, Any]],
                 budgets: Sequence[int], protocol: Protocol
                 ) -> tuple[list[Point], dict[str, int], list[Row]]:
        """Return points with these evaluations of the network, and what cannot be measured.

        With the points come the NFE wanted, by their keys; the rows are those of `gap`. Options
        that are refused become points all the same, so that the table says why.
        """
        points, wanted, gaps = dict[str, Point](), dict[str, int](), list[Row]()
        for network, given, nfe in itertools.product(list(networks), options, budgets):
            try:
                num_steps = steps_for(self.opened(network, given), given, nfe)
            except ValueError:
                num_steps = nfe
            if num_steps is None:
                gaps.append(gap(network, given, nfe, IMPOSSIBLE))
                continue
            point = self.point(network, {**given, 'num_steps': num_steps}, protocol)
            points.setdefault(point.key, point)
            wanted.setdefault(point.key, nfe)
        return list(points.values()), wanted, gaps

    def point(self, network: Network, options: Mapping[str, Any], protocol: Protocol) -> Point:
        """Return the point of these settings, with its key.

        Raises ValueError for a network that cannot be read, and for classes that it does not have.
        """
        given = {name: options[name] for name in FLAGS if options.get(name) is not None}
        try:
            drawn = self.images(self.drawing(network, given), network,
                                protocol.seeds(0)).fingerprint()
        except RefusedError:
            drawn = f'{digest_of(self.opened(network, given)[0])} {spelled(given)}'
        told = repr((drawn, protocol, self.classes, self.judge.origin()))
        return Point(network, given, protocol, hashlib.sha256(told.encode()).hexdigest()[:16])

    def __call__(self, point: Point, state: Path) -> Row:
        """Return the NFE, numbers and seconds of a point, as cells of the table.

        For several blocks these are the numbers of the best one, with means and deviations of all.
        """
        started = time.monotonic()
        drawing = self.drawing(point.network, point.options)
        cells = {'nfe': text(self._evaluations(point, drawing))}
        blocks = [self._scores(self.images(drawing, point.network, seeds),
                               state / f'seeds-{seeds[0]}-{seeds[-1]}')
                  for seeds in map(point.protocol.seeds, range(point.protocol.blocks))]
        for name, found in summary(blocks).items():
            cells[name] = repr(found.best)
            if len(blocks) > 1:
                cells[f'{name}_mean'] = repr(found.mean)
                cells[f'{name}_deviation'] = repr(found.deviation)
        return cells | {'seconds': f'{time.monotonic() - started:.1f}'}

    def _scores(self, images: GeneratedImages, state: Path) -> dict[str, float]:
        judge, reference = self.judge, self.judge.reference()   # the reference is on rank 0 only

        def notes() -> list[str]:
            return [] if reference is None else judge.notes(images, reference)

        self._say(distributed.on_rank_0(notes))
        try:
            measured = judge.measure(images, state, title=state.name)
        except ValueError as error:
            raise RefusedError(str(error)) from None

        def judged() -> dict[str, float]:
            assert isinstance(measured, Measured) and reference is not None
            result = judge.judged(measured, reference, [])
            self._say(result.notes)
            return result.scores

        return distributed.on_rank_0(judged)

    def effect(self, network: Network, options: Mapping[str, Any]) -> Callable[[Churn], Hashable]:
        """Return `effect_of` at the noise levels of these options.

        Raises ValueError for a sampler without S_churn.
        """
        drawing = self.drawing(network, options)
        sampler = drawing.plan.sampler
        if not hasattr(sampler, 'churn'):
            raise ValueError(f'{spelled(options) or "the sampler of this network"} has no S_churn '
                             f'to search for: use --sampler=table1 or angle')
        if isinstance(getattr(sampler, 'solver', None), MULTISTEP):
            raise ValueError(f'{spelled(options)}: a multistep solver cannot take fresh noise '
                             f'between its steps, so there is no S_churn to search for; use euler '
                             f'or heun')
        sigmas = drawing.plan.sigmas.tolist()
        return lambda churn: effect_of(churn, sigmas)

    def _evaluations(self, point: Point, drawing: Opened) -> float:
        """Return the NFE of an image: that of the first, or the mean of a few if images differ."""
        adaptive = isinstance(drawing.plan.sampler, tuple(ADAPTIVE.values()))
        count = min(PROBED, point.protocol.num) if adaptive else 1
        seeds = point.protocol.seeds(0)[:count]
        classes = class_numbers(self.classes, traits(drawing.net))
        classes = classes and [classes[i % len(classes)] for i in range(count)]
        try:
            with distributed.errors_on_all(ValueError, FloatingPointError):
                generate(drawing.net, drawing.plan, seeds, classes, self.device, self.rng)
        except ValueError as refusal:
            raise RefusedError(str(refusal)) from None
        return drawing.evaluations / count

    def _say(self, notes: Iterable[str]) -> None:
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                distributed.print0(f'Note: {with_flags(note, PARAMETERS)}')
