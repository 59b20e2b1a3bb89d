"""What a recipe may not say is told in one line, with its place."""

import pytest

from vlmedge.quant.recipe.toml import parse_recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('nam = "x"', ["nam", "unknown", "description"]),
        ("", ["lacks: name"]),
        ('name = ""', ["name", "printable"]),
        ('name = "a/b"', ["name", "a/b"]),
        ("name = 3", ["name is 3", "str"]),
        ('name = "x"\n[vison]\nformat = "int8"', ["vison", "unknown", "vision"]),
        ('name = "x"\nvision = "int8"', ["vision", "needed an object"]),
        ('name = "x"\n[vision]\nformt = "int8"', ["vision", "formt", "format"]),
        ('name = "x"\n[vision]\nformat = "int7"', ["vision.format", "int7", "int8-dynamic"]),
        ('name = "x"\n[vision]\nformat = 8', ["vision.format", "8"]),
        ('name = "x"\n[vision]\nblock_size = "64"', ["vision.block_size", "'64'", "int"]),
        ('name = "x"\n[vision]\nblock_size = true', ["vision.block_size", "True", "int"]),
        ('name = "x"\n[vision]\nblock_size = 48', ["block_size is 48", "16, 32, 64"]),
        ('name = "x"\n[vision]\nranges = "max"', ["vision.ranges", "max", "minmax"]),
        ('name = "x"\n[vision]\nmethod = "rtn"', ["vision.method", "rtn", "nearest"]),
        ('name = "x"\n[vision]\npercentile = 50', ["percentile is 50", "50 to 100"]),
        ('name = "x"\n[vision]\npercentile = nan', ["vision.percentile", "nan"]),
        ('name = "x"\n[vision]\nsmooth = 1.5', ["smooth is 1.5", "0 to 1"]),
        ('name = "x"\n[vision]\nsmooth = -1', ["smooth", "-1"]),
        ('name = "x"\n[vision]\nsmooth = "best"', ["smooth", "best"]),
        ('name = "x"\n[vision]\nsmooth = true', ["smooth", "True"]),
        ('name = "x"\n[vision]\nblock_scales = "any"', ["block_scales", "any", "positive"]),
        ('name = "x"\n[vision]\nblock_scales = 1', ["vision.block_scales", "1", "signed"]),
        ('name = "x"\n[vision]\nblock_scale = "positive"', ["block_scale;", "block_scales"]),
        (
            'name = "x"\n[[layers]]\npattern = "*"\nformat = "float"\nblock_scales = "signed"',
            ["layers[0]", "block_scales", "unknown"],
        ),
        ('name = "x"\n[decoder]\nlayout = "trt"', ["decoder.layout", "trt", "qdq"]),
        (
            'name = "x"\n[decoder]\nformat = "int4-weight"\nlayout = "qdq"\nblock_size = 32',
            ["decoder", "TensorRT", "32", "(64, 128)"],
        ),
        ('name = "x"\n[vision]\nformat = "int8"\nmethod = "awq"', ["vision", "awq", "int8"]),
        ('name = "x"\n[vision]\nformat = "fp8"\nmethod = "gptq"', ["vision", "gptq", "fp8"]),
        ('name = "x"\n[vision]\nformat = "int8"\nmethod = "awq+gptq"', ["awq", "int8"]),
        ('name = "x"\n[vision]\nshift = 1', ["vision.shift", "1", "search"]),
        ('name = "x"\n[embedding]\nformat = "int4"', ["embedding.format", "int4", "lm_head"]),
        ('name = "x"\n[embedding]\nformat = "lm_head"', ["lm_head", "int8-weight", "float"]),
        ('name = "x"\n[kv_cache]\nformat = "int8"', ["kv_cache.format", "int8-channel"]),
        ('name = "x"\n[attention]\ndecoder = "fp8"', ["attention", "decoder", "vision"]),
        ('name = "x"\n[layers]\npattern = "*"', ["layers", "needed a list"]),
        ('name = "x"\n[[layers]]\npattern = "*"', ["layers[0]", "lacks: format"]),
        ('name = "x"\n[[layers]]\npattern = ""\nformat = "float"', ["layers[0]", "no pattern"]),
        (
            'name = "x"\n[[layers]]\npattern = "a"\nformat = "float"\n'
            '[[layers]]\npattern = "b"\nformat = "fp8"\nmethod = "gptq"',
            ["layers[1]", "gptq"],
        ),
        ("name = ", ["not TOML", "Invalid value"]),
        ('name = "a"\nname = "b"', ["not TOML", "overwrite"]),
    ],
)
def test_what_a_recipe_may_not_say_is_told_in_one_line_with_its_key(text, words):
    with pytest.raises(ValueError, match=r"mine\.toml") as caught:
        parse_recipe(text, "mine.toml")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_head_can_be_the_table_only_where_the_numbers_are_the_tables():
    # AWQ multiplies the head's columns: its rows are no embeddings any more.
    text = '[lm_head]\nformat = "int8-weight"\n{}\n[embedding]\nformat = "lm_head"'
    parse_recipe('name = "x"\n' + text.format('method = "gptq"'), "x.toml")
    keys = ('method = "awq"', "awq"), ('method = "awq+gptq"', "awq"), ('layout = "qdq"', "qdq")
    for key, word in keys:
        with pytest.raises(ValueError, match=f"embedding table .*{word}"):
            parse_recipe('name = "x"\n' + text.format(key), "x.toml")
