"""Model folders of the published sizes, made-up vocabularies, no weights: both sides draw theirs."""

import json
import pathlib

root = pathlib.Path(__file__).resolve().parent.parent
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def made_up(n):
    """The n-th word of four letters; numbers after those."""
    return "w" + "".join(LETTERS[n // 26**k % 26] for k in range(4)) + ("" if n < 26**4 else str(n))


def vilt_b32():
    """ViLT-B/32: 30,522 words, 3,129 answers."""
    path = root / "build/bench/vilt-b32"
    path.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [made_up(n) for n in range(30522 - len(words))]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    config = {
        "architectures": ["ViltForQuestionAnswering"],
        "model_type": "vilt",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "image_size": 384,
        "patch_size": 32,
        "num_channels": 3,
        "qkv_bias": True,
        "max_image_length": -1,
        "num_images": -1,
        "vocab_size": 30522,
        "type_vocab_size": 2,
        "modality_type_vocab_size": 2,
        "max_position_embeddings": 40,
        "id2label": {str(i): f"answer {i}" for i in range(3129)},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 384},
                "size_divisor": 32,
                "resample": 3,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            }
        )
    )
    return path


def owlvit_b32():
    """OWL-ViT-B/32: 49,408 tokens, of which texts use the bytes' alone, one a letter."""
    path = root / "build/bench/owlvit-b32"
    path.mkdir(parents=True, exist_ok=True)
    tiny = root / "configs/models/tiny-owlvit"
    symbols = sorted((i, t) for t, i in json.loads((tiny / "vocab.json").read_text()).items())[:512]
    tokens = [t for _, t in symbols]
    tokens += [made_up(n) + "</w>" for n in range(49408 - 2 - len(tokens))] + [
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (path / name).write_bytes((tiny / name).read_bytes())
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "image_size": 768,
        "patch_size": 32,
        "layer_norm_eps": 1e-5,
    }
    text = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "hidden_act": "quick_gelu",
        "vocab_size": 49408,
        "max_position_embeddings": 16,
        "layer_norm_eps": 1e-5,
    }
    config = {
        "architectures": ["OwlViTForObjectDetection"],
        "model_type": "owlvit",
        "projection_dim": 512,
        "initializer_range": 0.02,
        "vision_config": vision,
        "text_config": text,
    }
    (path / "config.json").write_text(json.dumps(config))
    processor = json.loads((tiny / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(
        json.dumps(processor | {"size": {"height": 768, "width": 768}})
    )
    return path
