"""Every layer of a recipe in each format up to float: quantized once, then mixed at will."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..runtime import __version__
from ..runtime.manifest import Manifest
from .auto_cost import Costs
from .auto_moves import Move, is_fixed, name_group, next_format
from .calibration import hash_model
from .check_levels import ARRAYS
from .examples import DataSet
from .feeds import make_prompts
from .linears import list_linears
from .model_quantizer import ModelQuantizer, QuantizedModel
from .plan import make_plan
from .recipe import (
    AttentionRecipe,
    CacheRecipe,
    LayerException,
    Recipe,
    TableRecipe,
    format_recipe,
)
from .sensitivity import choose_all, find_own_sqnr
from .sensitivity_damage import ALL
from .sensitivity_mix import Mixer
from .sensitivity_rows import SensitivityRow
from .work_folder import WorkFolder

# Share of a cache's damage that a scale a channel instead of one a layer takes away, as a guess:
# only the order of trials hangs on it.
CHANNEL_GAIN = 0.75


class Ladders:
    """A float bundle's layers.

    Attributes:
        linears: of "vision" and "decoder".
        mixer: with every layer in each of its formats so far.
        choice: the recipe's own formats.
        own_sqnr_db: of linears in these formats.
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
            ValueError: the recipe quantizes nothing, or doesn't fit the model.
        """
        self._source, self._manifest, self._recipe = source, manifest, recipe
        self._work, self._num_threads, self._data = work, num_threads, data
        self._prompts = make_prompts(source, manifest, data.examples)
        self.mixer = Mixer(source, manifest)
        self.linears = {
            part: list_linears(model.graph) for part, model in self.mixer.models.items()
        }
        quantized = self._quantize(recipe)
        self.choice = choose_all(self.mixer, recipe)
        self.own_sqnr_db = find_own_sqnr(quantized)
        self._steps: dict[tuple[str, str], str] = {}  # (layer or part, format) -> the next one

    def climb(self) -> None:
        """Quantize every layer in all formats up to float."""
        mixer = self.mixer
        current = {name_group(name): format for name, format in self.choice.items()}
        while current:
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
                if is_fixed(self._recipe, name, after):
                    continue
                self._steps[name, current[name]] = reached[name] = after
            current = {name: format for name, format in reached.items() if format != "float"}

    def list_moves(
        self, rows: Sequence[SensitivityRow], tables: set[str], costs: Costs
    ) -> Iterator[Move]:
        """Every step of every layer that may help.

        Args:
            rows: of the recipe's own formats.
            tables: of the gate, whose limits fail.
            costs: of formats.
        """
        shares = share_damage(rows, tables)
        for group in dict.fromkeys(name_group(name) for name in self.choice):
            members = [name for name in self.choice if name_group(name) == group]
            before = self.choice[members[0]]
            damage = sum(shares.get(name, 0.0) for name in members)
            left = 1.0  # of the damage
            while damage > 0 and (after := self._steps.get((group, before))) is not None:
                rest = self._find_rest(group, after)
                cost = sum(costs.of(n, after) - costs.of(n, before) for n in members)
                yield Move(group, before, after, damage * (left - rest), cost)
                before, left = after, rest

    def _find_rest(self, group: str, format: str) -> float:
        """Share of a layer's damage that a higher format leaves, by its own error's power."""
        if format == "float":
            return 0.0
        if group == "kv_cache":
            return 1 - CHANNEL_GAIN
        first = self.mixer.find(group, self.choice[group]).error
        higher = self.mixer.find(group, format).error
        if not first or higher is None:
            return 0.0
        return (higher / first) ** 2

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

    def _quantize(self, recipe: Recipe) -> QuantizedModel:
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
        return quantized


def share_damage(rows: Sequence[SensitivityRow], tables: set[str]) -> dict[str, float]:
    """Layer -> its share of what fails: the largest, if several things do."""
    measures: list[dict[str, float]] = []
    if tables.intersection(ARRAYS):
        measures.append({row.layer: row.alone[ALL].embeds_error for row in rows})
    if tables - {*ARRAYS, "layers", "speed"}:
        measures.append({row.layer: row.alone[ALL].kl for row in rows})
    if "layers" in tables:
        own = {row.layer: row.own_sqnr_db for row in rows}
        measures.append({n: 10 ** (-db / 10) for n, db in own.items() if db is not None})
    shares: dict[str, float] = {}
    for measure in measures:
        total = sum(measure.values())
        for layer, value in measure.items():
            shares[layer] = max(shares.get(layer, 0.0), value / total if total else 0.0)
    return shares
