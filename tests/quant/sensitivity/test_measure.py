"""What each layer does to the model: against bundles really made and run, one by one."""

import dataclasses

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import spearmanr

from vlmedge.quant.graph.feeds import make_decoder_feed, make_prompts, make_vision_feeds
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LayerException
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.quant.sensitivity import stage_meter as sensitivity_stages
from vlmedge.quant.sensitivity.damage import ALL, Buckets
from vlmedge.quant.sensitivity.measure import measure_sensitivity, pick_prompts
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest

# With migration in the ViT: layers then depend on each other's norms and rows
RECIPE = parse_recipe(
    """name = "mixed"
[vision]
format = "int8"
ranges = "minmax"
smooth = 0.5
[decoder]
format = "int4-weight"
block_size = 32
[lm_head]
format = "int8-weight"
[embedding]
format = "int8"
[kv_cache]
format = "int8-tensor"
""",
    "test",
)
LAYERS = ("visual.blocks.0.attn.proj", "model.layers.0.mlp.gate_proj+up_proj")


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def measured(source, questions, tmp_path_factory):
    return {
        mode: measure_sensitivity(
            source,
            RECIPE,
            questions,
            mode=mode,
            work=tmp_path_factory.mktemp(mode),
            num_threads=1,
        )
        for mode in ("fast", "exact")
    }


@pytest.fixture(scope="module")
def run(questions, run_graph, source):
    """run(bundle): embeddings of every picture, logits of every answer's positions."""
    prompts = make_prompts(source, read_manifest(source), questions.examples)

    def observe(bundle):
        manifest = read_manifest(bundle)
        feeds = make_vision_feeds(prompts)
        embeds = [run_graph(bundle, feed.graph, feed.tensors)["image_embeds"] for feed in feeds]
        table, spec = Embeddings(bundle, manifest.embedding), manifest.decoder
        logits = []
        for index, prompt in enumerate(prompts):
            mine = [e for e, feed in zip(embeds, feeds, strict=True) if feed.prompt == index]
            feed = make_decoder_feed(prompt, mine, table)
            size = feed["inputs_embeds"].shape[1]
            dtype = next(t.dtype for t in manifest.graphs["decoder"].inputs if "past" in t.name)
            empty = np.zeros((1, spec.num_kv_heads, size, spec.head_dim), dtype)
            names = [
                f"past_key_values.{i}.{part}"
                for i in range(spec.num_layers)
                for part in ("key", "value")
            ]
            first = len(prompt.request.input_ids) - 1
            for position in range(first, first + max(1, len(prompt.answer_ids))):
                at = {"logit_index": np.array([position])} | dict.fromkeys(names, empty)
                logits.append(run_graph(bundle, "decoder", feed | at, ["logits"])["logits"][0])
        return embeds, np.stack(logits)

    return observe


@pytest.fixture(scope="module")
def float_outputs(run, source):
    return run(source)


def relative(got, needed):
    got, needed = (np.concatenate([np.ravel(one) for one in side]) for side in (got, needed))
    return float(np.linalg.norm(got - needed) / np.linalg.norm(needed))


def mean_kl(got, needed):
    ours, theirs = (log_softmax(rows.astype(np.float64), axis=1) for rows in (got, needed))
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())


def find(result, layer):
    return next(row for row in result.rows if row.layer == layer)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("side", ["alone", "rest"])
def test_exact_damage_is_that_of_a_bundle_made_for_it(
    measured, float_outputs, run, source, questions, tmp_path, layer, side
):
    own = LayerException(layer, find(measured["exact"], layer).format, "it")
    if side == "alone":
        recipe = dataclasses.replace(
            parse_recipe('name = "alone"', "test"),
            vision=dataclasses.replace(RECIPE.vision, format="float"),
            decoder=dataclasses.replace(RECIPE.decoder, format="float"),
            layers=(own,),
        )
    else:
        recipe = dataclasses.replace(RECIPE, layers=(LayerException(layer, "float"),))
    quantize_bundle(source, tmp_path / "bundle", recipe, questions, num_threads=1)
    embeds, logits = run(tmp_path / "bundle")
    damage = getattr(find(measured["exact"], layer), side)[ALL]
    assert damage.kl_mean == pytest.approx(mean_kl(logits, float_outputs[1]), rel=0.01)
    assert damage.logits_rel_l2 == pytest.approx(relative(logits, float_outputs[1]), rel=0.01)
    if layer.startswith("visual."):
        wanted = relative(embeds, float_outputs[0])
        assert damage.embeds_rel_l2 == pytest.approx(wanted, rel=0.01)
    else:
        assert damage.embeds_rel_l2 is None


def test_everything_together_is_the_bundle_of_the_recipe(
    measured, float_outputs, run, source, questions, tmp_path
):
    quantize_bundle(source, tmp_path / "bundle", RECIPE, questions, num_threads=1)
    embeds, logits = run(tmp_path / "bundle")
    for result in measured.values():
        total = result.total[ALL]
        assert total.embeds_rel_l2 == pytest.approx(relative(embeds, float_outputs[0]), rel=0.01)
        assert total.kl_mean == pytest.approx(mean_kl(logits, float_outputs[1]), rel=0.01)


def test_every_quantized_layer_has_a_row_with_caches_and_the_table(measured, source):
    coverage = read_manifest(source).coverage
    linears = {entry.name for entry in coverage if entry.kind == "linear"}
    linears.remove("visual.patch_embed.proj")  # stays float in every recipe
    caches = {entry.name for entry in coverage if entry.kind == "kv_cache"}
    assert caches
    for result in measured.values():
        names = [row.layer for row in result.rows]
        assert len(names) == len(set(names))
        assert set(names) == linears | caches | {"model.embed_tokens"}
        for row in result.rows:
            assert (row.own_sqnr_db is not None) == (row.layer in linears)


def test_the_fast_mode_ranks_as_the_exact_one(measured):
    for measure in ("embeds_rel_l2", "kl_mean"):
        pairs = [
            [getattr(find(measured[mode], row.layer).alone[ALL], measure) for mode in measured]
            for row in measured["exact"].rows
            if getattr(row.alone[ALL], measure) is not None
        ]
        assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.8, measure
    worst = {mode: result.ranked[0].layer for mode, result in measured.items()}
    top = [row.layer for row in measured["exact"].ranked[:3]]
    assert worst["fast"] in top


def test_sizes_add_up_to_the_whole(measured):
    for result in measured.values():
        assert result.buckets[-1] == ALL
        for row in result.rows:
            for damages in (row.alone, row.rest):
                for field in ("kl", "num_positions", "embeds_signal", "logits_signal"):
                    parts = [getattr(d, field) for name, d in damages.items() if name != ALL]
                    # shares of the fast mode are another in each size, so only signals add up
                    if result.mode == "exact" or field != "kl":
                        assert sum(parts) == pytest.approx(getattr(damages[ALL], field))


def test_an_interrupted_run_goes_on_behind_its_finished_stages(
    measured, source, questions, tmp_path, monkeypatch
):
    def stop(done, total, name):
        assert done < total or total == 0
        if name == "decoder: model.layers.1":
            raise KeyboardInterrupt

    options = {"mode": "exact", "work": tmp_path, "num_threads": 1}
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(source, RECIPE, questions, progress=stop, **options)
    seen = []
    real = sensitivity_stages.StageMeter._measure_exact
    monkeypatch.setattr(
        sensitivity_stages.StageMeter,
        "_measure_exact",
        lambda self, part, lanes, index, *rest: (
            seen.append((part, self._trials.stages[part][index])),
            real(self, part, lanes, index, *rest),
        )[1],
    )
    found = measure_sensitivity(source, RECIPE, questions, **options)
    assert seen == [("decoder", "model.layers.1"), ("decoder", "head")]
    assert found == measured["exact"]
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_quantizes_nothing_is_refused(source, questions, tmp_path):
    nothing = parse_recipe('name = "nothing"', "test")
    with pytest.raises(ValueError, match="nothing quantizes nothing"):
        measure_sensitivity(source, nothing, questions, work=tmp_path, num_threads=1)


def test_prompts_are_picked_of_all_sizes_in_turn(source, questions):
    manifest = read_manifest(source)
    buckets = Buckets(manifest)
    prompts = make_prompts(source, manifest, questions.examples) * 5
    names = [buckets.name_prompt(prompt) for prompt in pick_prompts(prompts, buckets, 4)]
    assert len(names) == 4
    assert set(names) == {buckets.name_prompt(prompt) for prompt in prompts}
    assert pick_prompts(prompts, buckets, 99) == prompts
