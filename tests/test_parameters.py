"""The table of names and shapes against the modules themselves."""

from dataclasses import replace

import pytest
from small_models import small_config

from actvar.config import FIXED, PRESETS, STATIC, Activation, ModelConfig, VQVAEConfig
from actvar.models.actvar import empty_model
from actvar.parameters import parameter_shapes

SPARSE = Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))
MODELS = {
    **PRESETS,
    "dense": small_config(),
    "active": small_config(activation=SPARSE),
    "shared AdaLN": small_config(activation=SPARSE, shared_adaln=True),
    "fixed tokens": small_config(activation=replace(SPARSE, token_choice=FIXED)),
    "static experts": small_config(activation=replace(SPARSE, expert_choice=STATIC)),
    "one level": small_config(vqvae=VQVAEConfig(24, 4, 32, (2,), 3, 8)),
    "narrower inside": small_config(vqvae=VQVAEConfig(24, 4, 32, (2, 1, 1), 2, 8)),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_names_shapes_and_order_are_those_of_the_modules(config: ModelConfig):
    """The exporter reads the table, and its weights files lie in this order."""
    state = empty_model(config).state_dict()
    assert list(parameter_shapes(config).items()) == [(name, tuple(tensor.shape)) for name, tensor in state.items()]
    assert [name for name, _ in empty_model(config).named_parameters()] == list(state)
