"""Tiny models with random weights of many families, each with the part of it that reads a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf

VOCABULARY, LAYERS, CONTEXT = 44, 3, 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DECODER: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": LAYERS,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": LAYERS,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 2,
    "n_positions": CONTEXT,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
NAMED = {"residual_in", "residual_out", "attention_out", "mlp_in", "mlp_out"}


@dataclass(frozen=True)
class Family:
    """How to make a model, and what is known of it."""

    make: Callable[[], Any]
    tower: str = ""
    """Path of the part that reads the text in the model without its head."""
    context: int | None = CONTEXT
    states: Callable[[Any, dict[str, Any]], Any] = field(
        default=lambda model, inputs: model(**inputs, output_hidden_states=True).hidden_states
    )
    """The hidden states of the text as transformers itself reports them."""
    roles: frozenset[str] = frozenset(NAMED)
    """Which roles of layer 1 are known."""
    vocabulary: int = VOCABULARY
    num_states: int = LAYERS + 1
    """Hidden states that transformers reports."""
    pads: bool = True
    """Whether padding leaves the vectors as they are."""


def of(model_class: str, config_class: str, settings: dict[str, Any]) -> Callable[[], Any]:
    return lambda: getattr(tf, model_class)(getattr(tf, config_class)(**settings))


def encoder_states(model: Any, inputs: dict[str, Any]) -> Any:
    return model.get_encoder()(**inputs, output_hidden_states=True).hidden_states


def text_states(model: Any, inputs: dict[str, Any]) -> Any:
    return model.text_model(**inputs, output_hidden_states=True).hidden_states


def _inside(name: str, *, text: dict[str, Any] = DECODER, vision: Any = VISION, **more: Any) -> Callable[[], Any]:
    """A language model in a larger one, from the names of its classes' beginning."""

    def make() -> Any:
        config = getattr(tf, f"{name}Config")(text_config=text, vision_config=vision, **more)
        return getattr(tf, f"{name}ForConditionalGeneration")(config)

    return make


def _qwen_vl(name: str, **more: Any) -> Callable[[], Any]:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "type": "default", "rope_theta": 10_000.0}
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "embed_dim": 32,
        "num_heads": 2,
        "intermediate_size": 32,
        "out_hidden_size": 32,
    }
    return _inside(name, text={**DECODER, "rope_scaling": rope, "rope_parameters": rope, **more}, vision=vision)


CLIP_TEXT = {key: value for key, value in SIZES.items() if key != "pad_token_id"}
NO_PARTS = frozenset({"residual_in", "residual_out"})
ONLY_STATES: frozenset[str] = frozenset()

FAMILIES: dict[str, Family] = {
    # Language models inside larger ones.
    "gemma3": Family(_inside("Gemma3", text={**DECODER, "head_dim": 16}, mm_tokens_per_image=4), "language_model"),
    "llava": Family(
        lambda: tf.LlavaForConditionalGeneration(
            tf.LlavaConfig(text_config=tf.LlamaConfig(**DECODER), vision_config=tf.CLIPVisionConfig(**VISION))
        ),
        "language_model",
    ),
    "llava_next": Family(
        lambda: tf.LlavaNextForConditionalGeneration(
            tf.LlavaNextConfig(text_config=tf.MistralConfig(**DECODER), vision_config=tf.CLIPVisionConfig(**VISION))
        ),
        "language_model",
    ),
    "paligemma": Family(
        lambda: tf.PaliGemmaForConditionalGeneration(
            tf.PaliGemmaConfig(
                text_config={**DECODER, "head_dim": 16, "model_type": "gemma"},
                vision_config={**VISION, "model_type": "siglip_vision_model", "projection_dim": 32},
                projection_dim=32,
            )
        ),
        "language_model",
        pads=False,  # without padding, and only then, its tokens see later ones
    ),
    "mllama": Family(
        _inside(
            "Mllama",
            text={
                **DECODER,
                "cross_attention_layers": [1],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            vision={
                **VISION,
                "num_global_layers": 1,
                "attention_heads": 2,
                "vision_output_dim": 64,
                "intermediate_layers_indices": [0],
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
            },
        ),
        "language_model",
        roles=ONLY_STATES,  # it passes over layer 1, which reads images
        vocabulary=VOCABULARY + 8,
        num_states=LAYERS,
    ),
    "idefics2": Family(
        lambda: tf.Idefics2ForConditionalGeneration(
            tf.Idefics2Config(text_config={**DECODER, "model_type": "mistral"}, vision_config=VISION)
        ),
        "text_model",
    ),
    "idefics3": Family(
        lambda: tf.Idefics3ForConditionalGeneration(
            tf.Idefics3Config(text_config={**DECODER, "model_type": "llama"}, vision_config=VISION)
        ),
        "text_model",
    ),
    "mistral3": Family(
        lambda: tf.Mistral3ForConditionalGeneration(
            tf.Mistral3Config(
                text_config={**DECODER, "model_type": "mistral", "head_dim": 16},
                vision_config={**VISION, "model_type": "pixtral", "head_dim": 16},
            )
        ),
        "language_model",
    ),
    "qwen2_vl": Family(_qwen_vl("Qwen2VL"), "language_model"),
    "qwen2_5_vl": Family(_qwen_vl("Qwen2_5_VL"), "language_model"),
    "qwen3_vl": Family(_qwen_vl("Qwen3VL", head_dim=16), "language_model"),
    "clip": Family(
        lambda: tf.CLIPModel(tf.CLIPConfig(text_config=CLIP_TEXT, vision_config=VISION)),
        "text_model",
        states=text_states,
    ),
    "siglip": Family(
        lambda: tf.SiglipModel(tf.SiglipConfig(text_config=CLIP_TEXT, vision_config=VISION)),
        "text_model",
        states=text_states,
    ),
    "clip_text_alone": Family(of("CLIPTextModel", "CLIPTextConfig", CLIP_TEXT)),
    "clip_text_projection": Family(of("CLIPTextModelWithProjection", "CLIPTextConfig", CLIP_TEXT)),
    "siglip_text_alone": Family(of("SiglipTextModel", "SiglipTextConfig", CLIP_TEXT)),
    "blip2_opt": Family(
        lambda: tf.Blip2ForConditionalGeneration(
            tf.Blip2Config(
                text_config={**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "model_type": "opt"},
                vision_config=VISION,
                qformer_config={
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                    "encoder_hidden_size": 32,
                    "vocab_size": 44,
                },
            )
        ),
        "language_model.model",
        states=lambda model, inputs: model.language_model(**inputs, output_hidden_states=True).hidden_states,
    ),
    # Encoders of encoder-decoders.
    "t5": Family(of("T5ForConditionalGeneration", "T5Config", T5), "encoder", None, encoder_states),
    "t5_encoder": Family(of("T5EncoderModel", "T5Config", T5), "encoder", None),
    "mt5": Family(of("MT5ForConditionalGeneration", "MT5Config", T5), "encoder", None, encoder_states),
    "umt5_encoder": Family(of("UMT5EncoderModel", "UMT5Config", T5), "encoder", None),
    "bart": Family(of("BartForConditionalGeneration", "BartConfig", BART), "encoder", states=encoder_states),
    "mbart": Family(of("MBartForConditionalGeneration", "MBartConfig", BART), "encoder", states=encoder_states),
    "marian": Family(of("MarianMTModel", "MarianConfig", BART), "encoder", states=encoder_states),
    "pegasus": Family(of("PegasusForConditionalGeneration", "PegasusConfig", BART), "encoder", states=encoder_states),
    "m2m_100": Family(of("M2M100ForConditionalGeneration", "M2M100Config", BART), "encoder", states=encoder_states),
    "switch": Family(
        of(
            "SwitchTransformersForConditionalGeneration",
            "SwitchTransformersConfig",
            T5 | {"num_sparse_encoder_layers": 1, "num_experts": 4},
        ),
        "encoder",
        None,
        encoder_states,
        NO_PARTS,
    ),
    "prophetnet": Family(
        of(
            "ProphetNetForConditionalGeneration",
            "ProphetNetConfig",
            {key: value for key, value in SIZES.items() if not key.startswith("num_")}
            | {
                "num_encoder_layers": LAYERS,
                "num_decoder_layers": 2,
                "num_encoder_attention_heads": 2,
                "num_decoder_attention_heads": 2,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
            },
        ),
        "encoder",
        CONTEXT - 1,
        encoder_states,
        NO_PARTS,
    ),
    # Encoders.
    "fnet": Family(
        of(
            "FNetModel",
            "FNetConfig",
            {k: v for k, v in SIZES.items() if k != "num_attention_heads"} | {"tpu_short_seq_length": CONTEXT},
        ),
        states=lambda model, inputs: model(input_ids=inputs["input_ids"], output_hidden_states=True).hidden_states,
        roles=NO_PARTS,
        pads=False,
    ),
    "convbert": Family(
        of("ConvBertModel", "ConvBertConfig", SIZES | {"embedding_size": 32}), pads=False, roles=NO_PARTS
    ),
    "bert": Family(of("BertModel", "BertConfig", SIZES)),
    "roberta": Family(of("RobertaModel", "RobertaConfig", SIZES | {"pad_token_id": 1}), context=CONTEXT - 2),
    "xlm_roberta": Family(of("XLMRobertaModel", "XLMRobertaConfig", SIZES | {"pad_token_id": 1}), context=CONTEXT - 2),
    "camembert": Family(of("CamembertModel", "CamembertConfig", SIZES | {"pad_token_id": 1}), context=CONTEXT - 2),
    "mpnet": Family(of("MPNetModel", "MPNetConfig", SIZES | {"pad_token_id": 1}), context=CONTEXT - 2, roles=NO_PARTS),
    "esm": Family(
        of(
            "EsmModel",
            "EsmConfig",
            SIZES | {"pad_token_id": 1, "mask_token_id": 5, "position_embedding_type": "absolute"},
        ),
        context=CONTEXT - 2,
    ),
    "longformer": Family(
        of("LongformerModel", "LongformerConfig", SIZES | {"pad_token_id": 1, "attention_window": 8}),
        context=CONTEXT - 2,
        roles=ONLY_STATES,  # it lengthens texts to whole windows inside
    ),
    "deberta_v2": Family(of("DebertaV2Model", "DebertaV2Config", SIZES)),
    "electra": Family(of("ElectraModel", "ElectraConfig", SIZES | {"embedding_size": 32})),
    "modernbert": Family(of("ModernBertModel", "ModernBertConfig", SIZES)),
    "distilbert": Family(
        of(
            "DistilBertModel",
            "DistilBertConfig",
            {
                "vocab_size": VOCABULARY,
                "dim": 32,
                "n_layers": LAYERS,
                "n_heads": 2,
                "hidden_dim": 64,
                "max_position_embeddings": CONTEXT,
            },
        ),
    ),
    "xlnet": Family(
        of(
            "XLNetModel",
            "XLNetConfig",
            {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": LAYERS, "n_head": 2, "d_inner": 64},
        ),
        context=None,
        roles=NO_PARTS,
    ),
    "xlm": Family(
        of(
            "XLMModel",
            "XLMConfig",
            {
                "vocab_size": VOCABULARY,
                "emb_dim": 32,
                "n_layers": LAYERS,
                "n_heads": 2,
                "max_position_embeddings": CONTEXT,
                "pad_token_id": 1,
            },
        ),
        roles=ONLY_STATES,
    ),
    # Causal models and the spellings of their configurations.
    "gpt2": Family(of("GPT2LMHeadModel", "GPT2Config", GPT)),
    "gptj": Family(of("GPTJForCausalLM", "GPTJConfig", GPT | {"rotary_dim": 8})),
    "gpt_neox": Family(of("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZES)),
    "bloom": Family(
        of(
            "BloomForCausalLM",
            "BloomConfig",
            {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": LAYERS, "n_head": 2},
        ),
        context=None,
        roles=NO_PARTS,
    ),
    "mpt": Family(
        of(
            "MptForCausalLM",
            "MptConfig",
            {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": LAYERS, "n_heads": 2, "max_seq_len": CONTEXT},
        ),
        context=None,
        roles=NO_PARTS,
    ),
    "falcon": Family(
        of("FalconForCausalLM", "FalconConfig", {k: v for k, v in SIZES.items() if k != "intermediate_size"})
    ),
    "opt": Family(
        of("OPTForCausalLM", "OPTConfig", SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1})
    ),
    "biogpt": Family(of("BioGptForCausalLM", "BioGptConfig", SIZES)),
    "phi": Family(of("PhiForCausalLM", "PhiConfig", DECODER)),
    "phi3": Family(of("Phi3ForCausalLM", "Phi3Config", DECODER)),
    "mixtral": Family(of("MixtralForCausalLM", "MixtralConfig", DECODER | {"num_local_experts": 4})),
    "deepseek_v2": Family(
        of(
            "DeepseekV2ForCausalLM",
            "DeepseekV2Config",
            DECODER
            | {
                "kv_lora_rank": 8,
                "q_lora_rank": None,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 16,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "moe_intermediate_size": 16,
                "num_experts_per_tok": 2,
                "first_k_dense_replace": 1,
                "n_group": 1,
                "topk_group": 1,
            },
        ),
    ),
    "deepseek_v3": Family(
        of(
            "DeepseekV3ForCausalLM",
            "DeepseekV3Config",
            DECODER
            | {
                "kv_lora_rank": 8,
                "q_lora_rank": None,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 16,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "moe_intermediate_size": 16,
                "num_experts_per_tok": 2,
                "first_k_dense_replace": 1,
                "n_group": 1,
                "topk_group": 1,
            },
        ),
    ),
    "glm": Family(of("GlmForCausalLM", "GlmConfig", DECODER | {"head_dim": 16})),
    "glm4": Family(of("Glm4ForCausalLM", "Glm4Config", DECODER | {"head_dim": 16}), roles=NO_PARTS),
    "gemma2": Family(of("Gemma2ForCausalLM", "Gemma2Config", DECODER | {"head_dim": 16})),
    "qwen3_moe": Family(
        of(
            "Qwen3MoeForCausalLM",
            "Qwen3MoeConfig",
            DECODER | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        )
    ),
    "mamba": Family(
        of(
            "MambaForCausalLM",
            "MambaConfig",
            {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS, "state_size": 4},
        ),
        context=None,
        roles=NO_PARTS,
    ),
    "rwkv": Family(
        of(
            "RwkvForCausalLM",
            "RwkvConfig",
            {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS, "context_length": CONTEXT},
        ),
        roles=frozenset(NAMED),
    ),
    "jamba": Family(
        of(
            "JambaForCausalLM",
            "JambaConfig",
            DECODER
            | {
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "num_experts": 2,
                "use_mamba_kernels": False,
                "mamba_d_state": 4,
            },
        ),
    ),
}


def make(name: str) -> Any:
    """The model, always the same, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FAMILIES[name].make().eval()
