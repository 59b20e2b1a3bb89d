import numpy as np
import pytest
import torch

from vlmedge.export.verify.layer_hooks import find_modules, keep_rows, read_matrix, read_parameter


class Attention(torch.nn.Module):
    """Two projections of one input."""

    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(4, 3)
        self.k_proj = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.q_proj(x), self.k_proj(x)


def nest(**modules):
    holder = torch.nn.Module()
    for name, module in modules.items():
        holder.add_module(name, module)
    return holder


@pytest.fixture
def model():
    """Modules where transformers has them."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([nest(self_attn=Attention())])
    return nest(
        model=nest(
            visual=nest(merger=nest(mlp=torch.nn.Sequential(torch.nn.Linear(4, 2)))),
            language_model=nest(layers=layers),
        ),
        lm_head=torch.nn.Linear(4, 7, bias=False),
    )


LAYER = "model.layers.0.self_attn.q_proj+k_proj"


def test_names_of_the_checkpoint_lead_to_transformers_modules(model):
    attention = model.model.language_model.layers[0].self_attn
    assert find_modules(model, LAYER) == [attention.q_proj, attention.k_proj]
    assert find_modules(model, "visual.merger.mlp.0") == [model.model.visual.merger.mlp[0]]
    assert find_modules(model, "lm_head") == [model.lm_head]
    with pytest.raises(ValueError, match=r"has no model\.layers\.3"):
        find_modules(model, "model.layers.3.mlp.down_proj")


def test_joined_layers_are_one_matrix_and_one_output(model):
    attention = model.model.language_model.layers[0].self_attn
    matrix = read_matrix(model, LAYER)
    assert matrix.shape == (5, 4)
    bias = torch.cat([attention.q_proj.bias, attention.k_proj.bias]).detach().numpy()
    x = torch.randn(2, 3, 4)
    with keep_rows(model, [LAYER], 1) as kept, torch.inference_mode():
        attention(x)
    rows, outputs = kept[LAYER]
    np.testing.assert_array_equal(rows, x.reshape(6, 4).numpy())
    np.testing.assert_allclose(outputs, rows @ matrix.T + bias, atol=1e-6)
    name = "model.layers.0.self_attn.q_proj.bias"
    np.testing.assert_array_equal(read_parameter(model, name), bias[:3])


def test_hooks_are_gone_afterwards_also_after_an_error(model):
    attention = model.model.language_model.layers[0].self_attn
    with pytest.raises(ZeroDivisionError), keep_rows(model, [LAYER], 1):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="has no"), keep_rows(model, [LAYER, "lm_tail"], 1):
        pass
    with keep_rows(model, [LAYER], 1) as kept:
        pass
    attention(torch.randn(1, 4))
    assert kept == {}
