"""Records what transformers' configs hold, for `tests/pretrained/test_config_keys.py`.

Each installed release adds a file `config_keys/transformers-VERSION.json`: of each class all its
keys with their defaults (`full`), and what `save_pretrained` writes of the default config
(`smallest`). Run it in an environment of transformers 4 and in one of 5:

    python tests/golden/record_config_keys.py
"""

import json
import pathlib

CLASSES = (
    "BertConfig", "RobertaConfig", "XLMRobertaConfig", "ViTConfig", "DeiTConfig", "ResNetConfig",
    "SwinConfig", "CLIPConfig", "CLIPTextConfig", "CLIPVisionConfig", "SiglipConfig",
    "SiglipTextConfig", "SiglipVisionConfig", "AlignConfig", "AlignTextConfig",
    "AlignVisionConfig",
)  # fmt: skip


def main() -> None:
    import transformers

    found = {}
    for name in CLASSES:
        config = getattr(transformers, name)()
        full, smallest = config.to_dict(), json.loads(config.to_json_string())
        found[name] = {"full": full, "smallest": smallest}
    folder = pathlib.Path(__file__).parent / "config_keys"
    folder.mkdir(exist_ok=True)
    path = folder / f"transformers-{transformers.__version__}.json"
    path.write_text(json.dumps(found, indent=1, sort_keys=True, default=str) + "\n")


if __name__ == "__main__":
    main()
