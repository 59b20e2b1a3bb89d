"""Every layer of a recipe in each format up to float: quantized once, then mixed at will."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ...runtime import __version__
from ...runtime.bundle.manifest import Manifest
from ..check.levels import ARRAYS
from ..compare.measures import MAX_SQNR_DB
from ..data.examples import DataSet
from ..graph.feeds import make_prompts
from ..graph.linears import list_carried, list_linears
from ..quantize.calibration import hash_model
from ..quantize.model_quantizer import ModelQuantizer
from ..quantize.plan import make_plan
from ..quantize.work_folder import WorkFolder
from ..recipe.recipe import AttentionRecipe, CacheRecipe, LayerException, Recipe, TableRecipe
from ..recipe.toml import format_recipe
from ..sensitivity.damage import ALL
from ..sensitivity.measure import choose_all
from ..sensitivity.mixer import Choice, Mixer
from ..sensitivity.rows import SensitivityRow
from .cost import Costs
from .moves import Move, is_fixed, name_group, next_format

Measure = Callable[[SensitivityRow], float]


class Ladders:
    """A float bundle's layers.

    Attributes:
        linears: of "vision" and "decoder".
        mixer: with every layer in each of its formats so far.
        levels: the recipe's own formats, then those one step up, ...; float layers are left out.
    """

    def __init__(
        self,
        source: Path,
        manifest: Manifest,
        recipe: Recipe,
        data: DataSet,
        work: Path,
        num_threads: int,
    ) -> None:
        """Quantize by the recipe.

        Raises:
            ValueError: the recipe doesn't fit the model.
        """
        self._source, self._manifest, self._recipe = source, manifest, recipe
        self._work, self._num_threads, self._data = work, num_threads, data
        self._prompts = make_prompts(source, manifest, data.examples)
        self.mixer = Mixer(source, manifest)
        self.linears = {
            part: list_linears(model.graph, list_carried(manifest))
            for part, model in self.mixer.models.items()
        }
        self._quantize(recipe)
        self.levels: list[Choice] = [choose_all(self.mixer, recipe)]
        self._steps: dict[tuple[str, str], str] = {}  # (layer or part, format) -> the next one

    def climb(self) -> None:
        """Quantize every layer in all formats up to float."""
        mixer = self.mixer
        while current := {name_group(name): format for name, format in self.levels[-1].items()}:
            above = {name: next_format(name, format) for name, format in current.items()}
            linears = {n: f for n, f in above.items() if n in mixer.linears and f != "float"}
            if linears:
                self._quantize(self._raise(linears))
            if above.get("kv_cache", "float") != "float":
                mixer.add_products("float", above["kv_cache"])
            reached = {}
            for name, after in above.items():
                if name in linears and after not in mixer.list_formats(name):
                    after = "float"  # its shape doesn't allow the format
                if not is_fixed(self._recipe, name, after):
                    self._steps[name, current[name]] = reached[name] = after
            level = {name: reached.get(name_group(name), "float") for name in self.levels[-1]}
            self.levels.append({name: f for name, f in level.items() if f != "float"})
        if not self.levels[-1]:
            self.levels.pop()

    def list_moves(self, harms: Mapping[tuple[str, str], float], costs: Costs) -> Iterator[Move]:
        """Every step of every layer.

        Args:
            harms: (layer, format) -> its share of the damage, 1 that of the recipe as it is.
            costs: of formats.
        """
        choice = self.levels[0]
        for group in dict.fromkeys(name_group(name) for name in choice):
            members = [name for name in choice if name_group(name) == group]
            before = choice[members[0]]
            while (after := self._steps.get((group, before))) is not None:
                gain = sum(
                    harms.get((n, before), 0.0) - harms.get((n, after), 0.0) for n in members
                )
                cost = sum(costs.of(n, after) - costs.of(n, before) for n in members)
                yield Move(group, before, after, gain, cost)
                before = after

    def _raise(self, formats: Mapping[str, str]) -> Recipe:
        """Some layers in given formats, everything else float."""
        plan = make_plan(self._recipe, self.linears)
        exceptions = [LayerException("*", "float", method="nearest")]
        for name, format in formats.items():
            own = plan.layers[name].recipe
            exceptions.append(
                LayerException(name, format, "auto", own.method, own.block_size)  # type: ignore[arg-type]
            )
        return dataclasses.replace(
            self._recipe,
            embedding=TableRecipe(),
            kv_cache=CacheRecipe(),
            attention=AttentionRecipe(),
            layers=(*self._recipe.layers, *exceptions),
        )

    def _quantize(self, recipe: Recipe) -> None:
        key = (format_recipe(recipe), hash_model(self._manifest), self._data.sha256, __version__)
        quantized = ModelQuantizer(
            self._source,
            self._manifest,
            make_plan(recipe, self.linears),
            prompts=self._prompts,
            work=WorkFolder(self._work / "layers", *key),
            num_threads=self._num_threads,
        ).run()
        self.mixer.add(quantized)


def share_harm(
    levels: Sequence[Sequence[SensitivityRow]], tables: set[str]
) -> dict[tuple[str, str], float]:
    """(layer, format) -> its part of what fails, against all layers in the recipe's own formats.

    Args:
        levels: rows in the recipe's formats, then in higher ones.
        tables: of the gate, whose limits fail; of several the one counts where a layer does most.
    """
    measures: list[Measure] = []
    if tables.intersection(ARRAYS):
        measures.append(lambda row: row.alone[ALL].embeds_error)
    if tables - {*ARRAYS, "layers", "speed"}:
        measures.append(lambda row: row.alone[ALL].kl)
    if "layers" in tables:
        measures.append(lambda row: 10 ** (-(row.own_sqnr_db or MAX_SQNR_DB) / 10))
    harms: dict[tuple[str, str], float] = {}
    for measure in measures:
        total = sum(measure(row) for row in levels[0])
        for row in (row for level in levels for row in level):
            key = row.layer, row.format
            harms[key] = max(harms.get(key, 0.0), measure(row) / total if total else 0.0)
    return harms
