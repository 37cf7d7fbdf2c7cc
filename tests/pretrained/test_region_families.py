"""What the families that read regions refuse, and what their files' names decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import registry
from mmflax.distributed.mesh import RULES, make_mesh, param_specs
from mmflax.errors import MmflaxError
from mmflax.models.encoders.regions import join_regions
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.pretrained.families import fields_of
from mmflax.pretrained.families.uniter import names as uniter
from mmflax.pretrained.families.vilbert import names as vilbert
from tests.parity import lxmert as lxmert_cases
from tests.parity import uniter as uniter_cases
from tests.parity import vilbert as vilbert_cases

WORDS = "embeddings.word_embeddings.weight"
VILBERT = {**vilbert_cases.SMALL, "hidden_act": "gelu"}


def test_a_file_of_another_family_is_named():
    with pytest.raises(MmflaxError, match=f"no {WORDS}; expected one of UNITER"):
        uniter.table(uniter_cases.SMALL, ["something.else"])


def test_vilbert_layers_go_to_encoders_and_fusion_by_the_connections():
    config = {**VILBERT, "t_biattention_id": [1, 3], "num_hidden_layers": 5}
    assert [list(segment) for segment in vilbert.segments(config, "t")] == [[0], [1, 2], [3, 4]]
    fusion = fields_of("vilbert", config, [])["fusion"]
    assert fusion["text_depths"] == [2, 2] and fusion["image_depths"] == [1, 1]


@pytest.mark.parametrize("family", ["uniter", "vilbert"])
def test_every_parameter_has_a_place_on_the_mesh(family):
    """Boxes have 5 or 7 numbers, and answers are 7: neither divides."""
    if family == "uniter":
        config = uniter_cases.SMALL
        shapes = uniter_cases.backbone_shapes(config, 3) | uniter_cases.head_shapes(config, "vqa")
    else:
        config = VILBERT
        shapes = vilbert_cases.shapes_of(config, "tasks", True)
    model = registry.build("mmflax.pretrained.families", "model", fields_of(family, config, shapes))
    params = jax.eval_shape(lambda key: model.init(key, model.zeros()), jax.random.key(0))
    param_specs(params["params"], RULES, make_mesh(data=4, fsdp=2))


BERT = {**lxmert_cases.SMALL, "type_vocab_size": 2, "num_hidden_layers": 1}
# family: (a config, the fusion it is made with, its words' output, its pooled one)
PARTS = {
    "lxmert": (BERT, "co_attention", "language_output", "pooled_output"),
    "uniter": (
        uniter_cases.SMALL,
        "merged_attention",
        "last_hidden_state",
        "pooler_output",
    ),
    "vilbert": (VILBERT, "co_transformer", "sequence_output_t", "pooled_output"),
    "visual_bert": (
        {**BERT, "visual_embedding_dim": 10},
        "merged_attention",
        "last_hidden_state",
        "pooler_output",
    ),
}


@pytest.mark.parametrize("family", PARTS)
def test_the_parts_of_a_family_are_those_of_a_vision_language_model(family):
    """With the family's parameters, the same parts give what the family gives."""
    config, fusion, words, pooled = PARTS[family]
    fields = fields_of(family, config, ["bert." + WORDS])
    model = registry.build("mmflax.pretrained.families", "model", fields)
    rooms = {"image_encoder": "regions", "text_encoder": "bert", "fusion": fusion}
    parts = {
        part: registry.build(
            f"mmflax.models.{'fusion' if part == 'fusion' else 'encoders'}",
            part,
            {"name": name, **fields[part]},
        )
        for part, name in rooms.items()
    }
    rng = np.random.default_rng(0)
    batch = {key: jnp.asarray(x) for key, x in lxmert_cases.batch(rng).items()}
    del batch["token_types"]
    shapes = jax.eval_shape(lambda key: model.init(key, batch)["params"], jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), shapes)

    def both(params, batch):
        image = join_regions(batch["regions"], batch["boxes"])
        whole = VisionLanguageModel(**parts)
        inputs = batch["tokens"], batch["text_mask"], batch["region_mask"]
        encoded = whole.apply({"params": params}, image, *inputs, train=False)
        return model.apply({"params": params}, batch), encoded

    found, encoded = jax.jit(both)(params, batch)
    used = np.asarray(batch["text_mask"])
    text = np.asarray(found[words])[:, : used.shape[1]]
    np.testing.assert_allclose(text[used], np.asarray(encoded.text)[used], atol=1e-5)
    np.testing.assert_allclose(found[pooled], encoded.pooled, atol=1e-5)


@pytest.mark.parametrize("prefix", ["uniter.", "module.uniter.", ""])
def test_a_prefix_is_found_by_the_word_table(prefix):
    assert uniter.backbone([f"{prefix}{WORDS}", "vqa_output.0.weight"]) == prefix
