# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
The tiny parts of diffusers' pipelines for flow models, beside those of `tiny_pipelines.py`, by the same functions:
`pipe = build("FluxPipeline", built_in("FluxPipeline"))` and `pipe(**arguments(pipe))`.

A prompt is given as embeddings wherever a pipeline takes them, so that it needs no text encoder.
"""

from typing import Any

import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.omnigen import pipeline_omnigen
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)

from tiny_pipelines import DROP, IMAGE, MODELS, PREPARE, SPECIAL, VISION, WIDTH, arguments, build, pipeline_class, randn
from tiny_pipelines import MASK as MASK_IMAGE

__all__ = ["arguments", "build", "built_in", "pipeline_class"]

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
ROPE = (4, 4, 8)
SD3 = HEADS | {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "joint_attention_dim": WIDTH,
    "caption_projection_dim": 32,
    "pooled_projection_dim": WIDTH,
    "pos_embed_max_size": 16,
}
FLUX = HEADS | {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "axes_dims_rope": ROPE,
}
QWEN = HEADS | {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 1,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": ROPE,
}
WAN = MODELS["SkyReelsV2Transformer3DModel"]
HUNYUAN_VIDEO = HEADS | {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "rope_axes_dim": ROPE,
    "guidance_embeds": True,
}
Z_IMAGE = {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "n_refiner_layers": 1}
MODELS |= {
    "SD3Transformer2DModel": SD3,
    "SD3ControlNetModel": SD3,
    "FluxTransformer2DModel": FLUX,
    "FluxControlNetModel": FLUX,
    "ChromaTransformer2DModel": {key: value for key, value in FLUX.items() if key != "pooled_projection_dim"}
    | {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
    "LongCatImageTransformer2DModel": FLUX,
    "OvisImageTransformer2DModel": {key: value for key, value in FLUX.items() if key != "pooled_projection_dim"}
    | {"out_channels": 16},
    "QwenImageTransformer2DModel": QWEN,
    "QwenImageControlNetModel": QWEN,
    "AutoencoderKLQwenImage": {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False],
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
    "Flux2Transformer2DModel": HEADS
    | {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "joint_attention_dim": WIDTH,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    "AutoencoderKLFlux2": {
        "block_out_channels": (4, 8),
        "norm_num_groups": 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "CogView4Transformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "text_embed_dim": WIDTH,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "pos_embed_max_size": 8,
        "sample_size": 8,
        "rope_axes_dim": (8, 8),
    },
    "AuraFlowTransformer2DModel": HEADS
    | {
        "sample_size": 8,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "joint_attention_dim": WIDTH,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 64,
    },
    "Lumina2Transformer2DModel": {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 32,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "axes_dim_rope": ROPE,
        "axes_lens": (64, 32, 32),
        "cap_feat_dim": WIDTH,
    },
    "LuminaNextDiT2DModel": {
        "sample_size": 8,
        "hidden_size": 32,
        "num_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 2,
        "multiple_of": 8,
        "cross_attention_dim": WIDTH,
    },
    "ZImageTransformer2DModel": Z_IMAGE
    | {"in_channels": 4, "n_layers": 1, "cap_feat_dim": WIDTH, "axes_dims": list(ROPE), "axes_lens": [128, 32, 32]},
    "ZImageControlNetModel": Z_IMAGE
    | {"control_layers_places": [0], "control_refiner_layers_places": [0], "control_in_dim": 4},
    "PRXTransformer2DModel": {
        "in_channels": 4,
        "context_in_dim": WIDTH,
        "hidden_size": 32,
        "num_heads": 2,
        "depth": 1,
        "axes_dim": [8, 8],
    },
    "OmniGenTransformer2DModel": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "num_layers": 1,
        "pad_token_id": 0,
        "vocab_size": 100,
        "time_step_dim": 4,
        "rope_scaling": {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
    },
    "ErnieImageTransformer2DModel": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_layers": 1,
        "ffn_hidden_size": 32,
        "in_channels": 16,
        "out_channels": 16,
        "text_in_dim": WIDTH,
        "rope_axes_dim": ROPE,
    },
    "Krea2Transformer2DModel": HEADS
    | {
        "in_channels": 16,
        "num_layers": 1,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "timestep_embed_dim": 16,
        "text_hidden_dim": WIDTH,
        "num_text_layers": 2,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": ROPE,
    },
    "NucleusMoEImageTransformer2DModel": QWEN
    | {"num_experts": 2, "moe_intermediate_dim": 16, "mlp_ratio": 2.0, "num_layers": 5, "capacity_factors": 1.0},
    "JoyImageEditTransformer3DModel": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "text_dim": WIDTH,
        "num_layers": 1,
        "rope_dim_list": list(ROPE),
    },
    "HiDreamImageTransformer2DModel": HEADS
    | {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "caption_channels": [WIDTH, WIDTH],
        "text_emb_dim": 2 * WIDTH,
        "axes_dims_rope": (8, 4, 4),
        "max_resolution": (8, 8),
        "llama_layers": [0, 0],
    },
    # video
    "AnyFlowFARTransformer3DModel": WAN | {"chunk_partition": (1, 1)},
    "SiglipVisionModel": {key: value for key, value in VISION.items() if key != "projection_dim"},
    "HunyuanVideoFramepackTransformer3DModel": HUNYUAN_VIDEO
    | {
        "image_condition_type": None,
        "has_image_proj": True,
        "image_proj_dim": WIDTH,
        "has_clean_x_embedder": True,
    },
    "WanTransformer3DModel": WAN,
    "AnyFlowTransformer3DModel": WAN,
    "ChronoEditTransformer3DModel": WAN,
    "WanVACETransformer3DModel": WAN | {"vace_layers": [0], "vace_in_channels": 96},
    "LTXVideoTransformer3DModel": {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "num_layers": 1,
        "caption_channels": WIDTH,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "patch_size": 1,
    },
    "MochiTransformer3DModel": HEADS
    | {
        "num_layers": 2,
        "pooled_projection_dim": 16,
        "text_embed_dim": WIDTH,
        "time_embed_dim": 4,
        "max_sequence_length": 16,
    },
    "AutoencoderKLMochi": {
        "encoder_block_out_channels": (32,) * 4,
        "decoder_block_out_channels": (32,) * 4,
        "layers_per_block": (1,) * 5,
    },
    "CosmosTransformer3DModel": HEADS
    | {
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 1,
        "mlp_ratio": 2,
        "text_embed_dim": WIDTH,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "concat_padding_mask": False,  # it is resized by torchvision
    },
    "Kandinsky5Transformer3DModel": {
        "in_text_dim": WIDTH,
        "in_text_dim2": WIDTH,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 32,
        "num_text_blocks": 1,
        "num_visual_blocks": 1,
        "axes_dims": ROPE,
    },
    "HunyuanVideoTransformer3DModel": HUNYUAN_VIDEO,
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4,
        "block_out_channels": (8,) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "HunyuanVideo15Transformer3DModel": HEADS
    | {
        "in_channels": 9,
        "out_channels": 4,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": WIDTH,
        "text_embed_2_dim": WIDTH,
        "image_embed_dim": WIDTH,
        "rope_axes_dim": ROPE,
        "target_size": 16,
        "task_type": "t2v",
    },
    "AutoencoderKLHunyuanVideo15": {"latent_channels": 4, "block_out_channels": (8,) * 5, "layers_per_block": 1},
    "EasyAnimateTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "sample_width": 8,
        "sample_height": 8,
        "num_layers": 1,
        "mmdit_layers": 1,
        "time_embed_dim": 8,
        "text_embed_dim": WIDTH,
        "patch_size": 2,
    },
    "AutoencoderSAME": {
        "patch_size": 16,
        "encoder_channels": 8,
        "encoder_c_mults": (1,),
        "encoder_strides": (2,),
        "encoder_transformer_depths": (1,),
        "latent_dim": 8,
        "dim_heads": 4,
        "sampling_rate": 1000,
    },
    "StableAudio3DiTModel": {
        "io_channels": 8,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "cond_token_dim": WIDTH,
        "global_cond_dim": WIDTH,
        "local_add_cond_dim": 9,
        "timestep_features_dim": 8,
        "num_memory_tokens": 2,
    },
    "StableAudio3DurationEmbedder": {"output_dim": WIDTH, "fourier_dim": 8},
    "LongCatAudioDiTVae": {
        "channels": 8,
        "c_mults": [1, 1],
        "strides": [2, 2],
        "latent_dim": 8,
        "encoder_latent_dim": 16,
        "downsampling_ratio": 4,
        "sample_rate": 100,
    },
    "LongCatAudioDiTTransformer": {
        "dit_dim": 16,
        "dit_depth": 1,
        "dit_heads": 2,
        "dit_text_dim": WIDTH,
        "latent_dim": 8,
    },
    "LTX2VideoTransformer3DModel": {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "audio_in_channels": 8,
        "audio_out_channels": 8,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "num_layers": 1,
        "caption_channels": WIDTH,
        "rope_double_precision": False,
    },
    "AutoencoderKLLTX2Video": {
        "latent_channels": 8,
        "block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 3,
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4,
        "patch_size": 1,
        "spatial_compression_ratio": 8,
        "temporal_compression_ratio": 8,
    },
    "AutoencoderKLLTX2Audio": {
        "base_channels": 8,
        "ch_mult": (1,),
        "num_res_blocks": 1,
        "latent_channels": 2,
        "mel_bins": 16,
        "sample_rate": 1000,
        "mel_hop_length": 10,
    },
    "LTX2TextConnectors": {
        "caption_channels": WIDTH,
        "text_proj_in_factor": 3,
        "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 4,
        "video_connector_num_layers": 1,
        "video_connector_num_learnable_registers": 16,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": 4,
        "audio_connector_num_layers": 1,
        "audio_connector_num_learnable_registers": 16,
        "rope_double_precision": False,
    },
    "LTX2Vocoder": {
        "in_channels": 8,
        "hidden_channels": 16,
        "upsample_kernel_sizes": [4, 4],
        "upsample_factors": [2, 2],
        "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1, 3, 5]],
        "output_sampling_rate": 1000,
    },
    "AutoencoderKLMagvit": {
        "latent_channels": 4,
        "block_out_channels": [8] * 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
}

MASK = torch.ones(1, 16, dtype=torch.long)
EMBEDS = {
    "prompt": None,
    "negative_prompt": None,
    "prompt_embeds": randn(1, 16, WIDTH),
    "negative_prompt_embeds": randn(1, 16, WIDTH, seed=1),
}
POOLED = {
    "pooled_prompt_embeds": randn(1, WIDTH, seed=2),
    "negative_pooled_prompt_embeds": randn(1, WIDTH, seed=3),
}
MASKS = {"prompt_attention_mask": MASK, "negative_prompt_attention_mask": MASK}
QWEN_MASKS = {"prompt_embeds_mask": MASK, "negative_prompt_embeds_mask": MASK}
NO_TEXT = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
LATENT = {"output_type": "latent"}
SHIFTED_VAE = {"vae": {"shift_factor": 0.1}}
LISTS = {key: [value[0]] for key, value in EMBEDS.items() if value is not None}


class NoSafetyChecker(torch.nn.Module):
    """In the place of one that needs a package of its own."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, text):
        return True

    def check_video_safety(self, video):
        return video


class TextProcessor:
    """In the place of OmniGen's, which needs torchvision for images: a prompt and an empty one, of 4 tokens each."""

    def __init__(self, tokenizer, max_image_size):
        self.max_image_size = max_image_size

    def __call__(self, prompt, input_images, height, width, **kwargs):
        length = 4 + 1 + height * width // 16  # of the text, the time and the patches
        return {
            "input_ids": torch.tensor([[4, 5, 6, 7], [0, 1, 0, 1]]),
            "attention_mask": torch.ones(2, length, length, dtype=torch.long),
            "position_ids": torch.arange(length).expand(2, -1),
            "input_pixel_values": [],
            "input_image_sizes": {},
        }


pipeline_omnigen.OmniGenMultiModalProcessor = TextProcessor
# they bring an image to a megapixel
for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_inpaint):
    module.calculate_dimensions = lambda area, ratio: (16, 16, None)
for module in (pipeline_qwenimage_edit_plus, pipeline_qwenimage_layered, pipeline_longcat_image_edit):
    module.calculate_dimensions = lambda area, ratio: (16, 16)
SPECIAL += [
    (
        "HunyuanSkyreels.*",
        NO_TEXT | {"transformer": {"in_channels": 8}},
        EMBEDS | POOLED | MASKS | LATENT | {"num_frames": 5},
    ),
    ("HunyuanVideoImageToVideo.*", {"transformer": {"in_channels": 9, "image_condition_type": "latent_concat"}}, {}),
    ("HunyuanVideo15ImageToVideo.*", {"transformer": {"task_type": "i2v"}}, {}),
    ("ChronoEdit.*", {"transformer": {"image_dim": WIDTH, "added_kv_proj_dim": 24}}, {}),
    ("SanaImageToVideo.*", {"vae": "AutoencoderKLWan"}, {"frames": 5}),
    ("Cosmos2VideoToWorld.*", {"transformer": {"in_channels": 17}}, {}),
    ("(WanImageToVideo|ChronoEdit).*", {"transformer": {"in_channels": 36}}, {"image_embeds": DROP}),
    ("LucyEdit.*", {"transformer": {"in_channels": 32}}, {}),
    ("CogView4Control.*", {"transformer": {"in_channels": 8}}, {}),
    ("StableDiffusion3ControlNetInpainting.*", {"controlnet": {"extra_conditioning_channels": 1}}, {}),
    ("QwenImageControlNetInpaint.*", {"controlnet": {"extra_condition_channels": 4}}, {"control_mask": MASK_IMAGE}),
    (
        "StableDiffusion3.*",
        NO_TEXT | SHIFTED_VAE | {"text_encoder_3": None, "tokenizer_3": None},
        EMBEDS | POOLED | LATENT,
    ),
    ("StableDiffusion3ControlNet.*", {}, {"control_image": IMAGE, "control_mask": MASK_IMAGE}),
    (
        "StableDiffusion3Inpaint.*",
        {"transformer": {"in_channels": 16, "out_channels": 16}, "vae": {"latent_channels": 16}},
        {},
    ),
    ("StableDiffusion3PAG.*", {"pag_applied_layers": lambda: "blocks.0"}, {}),
    ("(Flux(?!2).*|VisualCloze.*)", NO_TEXT | SHIFTED_VAE, EMBEDS | POOLED | LATENT),
    ("FluxControl(?!Net).*", {"transformer": {"in_channels": 32, "out_channels": 16}}, {}),
    ("FluxFill.*", {"transformer": {"in_channels": 48, "out_channels": 16}}, {}),
    ("FluxKontext.*", {}, {"_auto_resize": False, "max_area": 256}),
    ("Chroma.*", NO_TEXT | SHIFTED_VAE, EMBEDS | {key: mask.float() for key, mask in MASKS.items()} | LATENT),
    ("LongCatImage.*", NO_TEXT | {"text_processor": None}, EMBEDS | LATENT | {"enable_prompt_rewrite": False}),
    ("OvisImage.*", NO_TEXT, EMBEDS | LATENT),
    ("QwenImage.*", NO_TEXT | {"processor": None}, EMBEDS | QWEN_MASKS | LATENT),
    ("Flux2.*", NO_TEXT, EMBEDS | LATENT | {"image": DROP}),
    ("Flux2KleinInpaint.*", {}, {"image": IMAGE}),
    ("CogView4.*", NO_TEXT, EMBEDS | LATENT),
    ("AuraFlow.*", NO_TEXT, EMBEDS | MASKS | LATENT),
    ("Lumina2?Pipeline", NO_TEXT, EMBEDS | MASKS | LATENT),
    ("ZImage.*", NO_TEXT | SHIFTED_VAE, EMBEDS | LISTS | LATENT),
    ("PRX.*", NO_TEXT, EMBEDS | MASKS | LATENT),
    ("OmniGen.*", {}, {"prompt": "a cat", "input_images": None} | LATENT),
    ("(Wan|LucyEdit|ChronoEdit|AnyFlow).*", NO_TEXT, EMBEDS | LATENT | {"num_frames": 5, "video": [IMAGE] * 5}),
    ("(Wan|LucyEdit).*", {"transformer": {}}, {}),
    ("AnyFlow.*", {}, {"negative_prompt_embeds": DROP}),
    (
        "LTX(?!2).*",
        NO_TEXT,
        EMBEDS | MASKS | LATENT | {"height": 32, "width": 32, "num_frames": 9, "strength": 1.0, "video": DROP},
    ),
    ("Mochi.*", NO_TEXT, EMBEDS | MASKS | LATENT | {"num_frames": 7}),
    ("Cosmos2.*", NO_TEXT | {"safety_checker": NoSafetyChecker}, EMBEDS | LATENT | {"num_frames": 5, "video": DROP}),
    (
        "Kandinsky5.*",
        NO_TEXT | {"transformer": "Kandinsky5Transformer3DModel"},
        EMBEDS
        | LATENT
        | {
            "prompt_embeds_qwen": randn(1, 16, WIDTH),
            "prompt_embeds_clip": randn(1, WIDTH, seed=2),
            "negative_prompt_embeds_qwen": randn(1, 16, WIDTH, seed=1),
            "negative_prompt_embeds_clip": randn(1, WIDTH, seed=3),
            "prompt_cu_seqlens": torch.tensor([0, 16], dtype=torch.int32),
            "negative_prompt_cu_seqlens": torch.tensor([0, 16], dtype=torch.int32),
            "num_frames": 5,
        },
    ),
    ("HunyuanVideo(?!15).*", NO_TEXT, EMBEDS | POOLED | MASKS | LATENT | {"num_frames": 5}),
    (
        "HunyuanVideo15.*",
        NO_TEXT | {"guider": ClassifierFreeGuidance},
        EMBEDS
        | QWEN_MASKS
        | LATENT
        | {
            "num_frames": 5,
            "prompt_embeds_2": randn(1, 16, WIDTH),
            "negative_prompt_embeds_2": randn(1, 16, WIDTH, seed=1),
            "prompt_embeds_mask_2": MASK,
            "negative_prompt_embeds_mask_2": MASK,
        },
    ),
    (
        "LTX2.*",
        NO_TEXT,
        EMBEDS
        | MASKS
        | LATENT
        | {
            "prompt_embeds": randn(1, 16, WIDTH * 3),
            "negative_prompt_embeds": randn(1, 16, WIDTH * 3, seed=1),
            "height": 32,
            "width": 32,
            "num_frames": 9,
            "stg_scale": 0.0,
            "audio_stg_scale": 0.0,
        },
    ),
    (
        "StableAudio3.*",
        NO_TEXT,
        EMBEDS | LATENT | {"encoder_attention_mask": MASK, "negative_encoder_attention_mask": MASK, "duration": 0.5},
    ),
    (
        "StableAudio3(AudioToAudio|Inpaint).*",
        {},
        {
            "audio": randn(1, 2, 1024),
            "inpaint_audio": randn(1, 2, 1024),
            "mask_start_seconds": 0.1,
            "mask_end_seconds": 0.3,
        },
    ),
    ("LongCatAudioDiT.*", {}, {"prompt": "a cat", "negative_prompt": None, "audio_duration_s": 0.5}),
    ("ZImageControlNetInpaint.*", {"controlnet": {"control_in_dim": 9}}, {}),
    ("LTX2ImageToVideo.*", {}, {"image_crf": 0}),  # a compression that needs a package
    ("AnyFlowFAR.*", {}, {"video": DROP}),
    ("(ErnieImage|Krea2|NucleusMoE|JoyImageEdit).*", NO_TEXT | {"processor": None}, EMBEDS | QWEN_MASKS | LATENT),
    ("ErnieImage.*", {}, LISTS),
    ("Krea2.*", {}, {f"{sign}prompt_embeds_mask": MASK.bool() for sign in ("", "negative_")}),
    ("Krea2.*", {}, {"prompt_embeds": randn(1, 16, 2, WIDTH), "negative_prompt_embeds": randn(1, 16, 2, WIDTH)}),
    (
        "HiDream.*",
        NO_TEXT | {f"{part}_{k}": None for part in ("text_encoder", "tokenizer") for k in (3, 4)},
        {
            "prompt": None,
            "negative_prompt": None,
            "prompt_embeds_t5": randn(1, 16, WIDTH),
            "negative_prompt_embeds_t5": randn(1, 16, WIDTH, seed=1),
            "prompt_embeds_llama3": randn(1, 1, 16, WIDTH, seed=2),
            "negative_prompt_embeds_llama3": randn(1, 1, 16, WIDTH, seed=3),
            "pooled_prompt_embeds": randn(1, 2 * WIDTH),
            "negative_pooled_prompt_embeds": randn(1, 2 * WIDTH, seed=1),
        }
        | LATENT,
    ),
    ("EasyAnimate.*", NO_TEXT, EMBEDS | MASKS | LATENT | {"num_frames": 5, "video": DROP}),
]
PREPARE.append(("Kandinsky5.*", lambda pipe: setattr(pipe, "resolutions", [(16, 16)]) or {}))
# where it is not the plain one
SCHEDULERS: dict[str, dict[str, Any]] = {
    "Flux": {"use_dynamic_shifting": True, "shift": 3.0},
    "StableDiffusion3": {"shift": 3.0},
    "Cosmos2": {"use_karras_sigmas": True},
    "Mochi": {"invert_sigmas": True},
    "OmniGen": {"invert_sigmas": True, "num_train_timesteps": 1},
    "Wan": {"shift": 3.0},
    "LTX2": {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1},
    "StableAudio3": {"stochastic_sampling": True},
    "LongCatAudioDiT": {"invert_sigmas": True},
    "ZImage": {"shift": 3.0},
}


def built_in(name: str) -> FlowMatchEulerDiscreteScheduler:
    """diffusers' scheduler for that pipeline."""
    configs = [config for prefix, config in SCHEDULERS.items() if name.startswith(prefix)]
    return FlowMatchEulerDiscreteScheduler(**(configs[0] if configs else {}))
