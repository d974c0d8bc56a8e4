import math

import jax
import pytest

from lm.config import Config, defaults, source
from lm.errors import UserError
from lm.models.presets import PRESETS, preset
from lm.models.transformer import build_model, initial_params

PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "gpt2_350m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "stories260k": 260_032,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama3_1b": 1_235_814_400,
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_real_model_has_the_published_number_of_parameters(name):
    config = defaults()
    config.data.train.docs = source(kind="embedded")
    config.model.update(preset(name))
    model = build_model(Config.from_dict(config.to_dict()).model)
    params = jax.eval_shape(lambda key: initial_params(model, key), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == PUBLISHED[name]


def test_a_preset_is_a_copy():
    preset("gpt2_124m")["num_layers"] = 1
    assert preset("gpt2_124m")["num_layers"] == 12


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean gpt2_124m"):
        preset("gpt2_124")
    with pytest.raises(UserError, match="llama3_8b"):
        preset("zzz")
