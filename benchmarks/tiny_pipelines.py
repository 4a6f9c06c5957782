# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Pipelines of diffusers with tiny random parts, from the annotations of their constructors and the names of the arguments
of their calls: `pipe, call = build("StableDiffusionPipeline", scheduler)`.

Images have 16x16 pixels; every autoencoder halves them once, where its class allows that.
"""

import functools
import inspect
import re
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LATENT = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
WIDTH = 8  # of text and image embeddings


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ parts, by their class

TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 80,
    "projection_dim": WIDTH,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": WIDTH,
    "image_size": 16,
    "patch_size": 8,
}
T5 = {"d_model": WIDTH, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 100}
VAE = {
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
CROSS_ATTENTION = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}
SIMPLE_CROSS_ATTENTION = {
    "block_out_channels": (8, 8),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "cross_attention_dim": 8,
    "encoder_hid_dim": 8,
    "attention_head_dim": 4,
    "resnet_time_scale_shift": "scale_shift",
}
TRANSFORMER = {
    "sample_size": 8,
    "patch_size": 2,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 8,
    "num_embeds_ada_norm": 1000,
}
TEXT_TRANSFORMER = TRANSFORMER | {
    "caption_channels": WIDTH,
    "cross_attention_dim": 8,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "attention_bias": True,
}
CONTROL_NET = {
    "layers_per_block": 1,
    "block_out_channels": UNET["block_out_channels"],
    "norm_num_groups": 4,
    "down_block_types": CROSS_ATTENTION["down_block_types"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "conditioning_embedding_out_channels": (4, 8),  # one downsampling, as in the VAE
}
VIDEO_UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}
HUNYUAN = {
    "sample_size": 4,
    "patch_size": 2,
    "in_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "hidden_size": 16,
    "cross_attention_dim": WIDTH,
    "cross_attention_dim_t5": WIDTH,
    "pooled_projection_dim": WIDTH,
}
SANA = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": WIDTH,
    "sample_size": 8,
}
MODELS: dict[str, dict[str, Any]] = {
    # text and images
    "CLIPTextModel": TEXT,
    "CLIPTextModelWithProjection": TEXT,
    "CLIPVisionModel": VISION,
    "CLIPVisionModelWithProjection": VISION,
    "T5EncoderModel": T5,
    "UMT5EncoderModel": T5,
    "BertModel": TEXT,
    "RobertaSeriesModelWithTransformation": TEXT | {"project_dim": WIDTH},
    "MultilingualCLIP": TEXT | {"transformerDimensions": WIDTH, "numDims": WIDTH},
    "ClapTextModelWithProjection": TEXT,
    "Gemma2Model": TEXT | {"num_key_value_heads": 2, "head_dim": 4},
    "ClapModel": {
        "text_config": TEXT,
        "audio_config": {
            "patch_embeds_hidden_size": 8,
            "depths": [1],
            "num_attention_heads": [2],
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "spec_size": 64,
            "num_mel_bins": 16,
        },
        "projection_dim": WIDTH,
    },
    "CLIPImageProjection": {"hidden_size": WIDTH},
    "PaintByExampleImageEncoder": VISION | {"proj_size": WIDTH},
    "PriorTransformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "embedding_dim": WIDTH,
        "num_embeddings": 77,
    },
    "StableUnCLIPImageNormalizer": {"embedding_dim": WIDTH},
    "ShapERenderer": {
        "param_shapes": ((8, 93), (8, 8), (8, 8), (8, 8)),
        "d_latent": 8,
        "d_hidden": 8,
        "n_output": 12,
    },
    "SpeechT5HifiGan": {
        "model_in_dim": 8,
        "sampling_rate": 1000,
        "upsample_initial_channel": 8,
        "upsample_rates": [2, 2],
        "upsample_kernel_sizes": [4, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
        "normalize_before": False,
    },
    # autoencoders
    "AutoencoderKL": VAE | {"latent_channels": 4},
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
    },
    "AutoencoderKLAllegro": {"block_out_channels": (8,) * 4, "norm_num_groups": 2, "layers_per_block": 1},
    "AutoencoderKLWan": {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "VQModel": VAE | {"num_vq_embeddings": 12},
    "AutoencoderKLCogVideoX": {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
        "block_out_channels": (4,) * 4,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    # networks
    "UNet2DModel": UNET
    | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    "UNet2DConditionModel": UNET | CROSS_ATTENTION,
    "MotionAdapter": {
        "block_out_channels": UNET["block_out_channels"],
        "motion_layers_per_block": 1,
        "motion_norm_num_groups": 4,
        "motion_num_attention_heads": 2,
    },
    "ControlNetModel": CONTROL_NET,
    "ControlNetUnionModel": CONTROL_NET | {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8},
    "SparseControlNetModel": CONTROL_NET
    | {"down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"), "motion_num_attention_heads": 2},
    "ControlNetXSAdapter": {
        "block_out_channels": (4, 8),
        "base_block_out_channels": UNET["block_out_channels"],
        "down_block_types": CROSS_ATTENTION["down_block_types"],
        "cross_attention_dim": WIDTH,
        "sample_size": 8,
        "conditioning_embedding_out_channels": (4, 8),
        "num_attention_heads": 2,
        "max_norm_num_groups": 4,
        "use_linear_projection": False,
    },
    "T2IAdapter": {"channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 2},
    "UNet1DModel": {
        "block_out_channels": (32, 32, 64),
        "extra_in_channels": 64,
        "sample_size": 512,
        "sample_rate": 1000,
        "flip_sin_to_cos": True,
    },
    "UNet3DConditionModel": VIDEO_UNET,
    "I2VGenXLUNet": VIDEO_UNET,
    "UNetSpatioTemporalConditionModel": {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "cross_attention_dim": WIDTH,
        "num_attention_heads": 2,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
    },
    "Kandinsky3UNet": {
        "time_embedding_dim": 4,
        "groups": 2,
        "attention_head_dim": 4,
        "layers_per_block": 3,
        "block_out_channels": (8,) * 4,
        "cross_attention_dim": WIDTH,
        "encoder_hid_dim": WIDTH,
    },
    "BriaTransformer2DModel": {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": [0, 4, 4],
    },
    "SanaVideoTransformer3DModel": SANA
    | {
        "in_channels": 16,
        "out_channels": 16,
        "attention_head_dim": 12,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
    },
    "UNetFlatConditionModel": UNET
    | {
        "down_block_types": ("DownBlockFlat", "CrossAttnDownBlockFlat"),
        "up_block_types": ("CrossAttnUpBlockFlat", "UpBlockFlat"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
    },
    "UniDiffuserTextDecoder": {
        "prefix_length": 77,
        "prefix_inner_dim": WIDTH,
        "prefix_hidden_dim": WIDTH,
        "vocab_size": 100,
        "n_positions": 80,
        "n_embd": WIDTH,
        "n_layer": 1,
        "n_head": 2,
    },
    "UniDiffuserModel": {
        "text_dim": WIDTH,
        "clip_img_dim": WIDTH,
        "num_text_tokens": 77,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "sample_size": 8,
        "patch_size": 2,
    },
    "HunyuanDiT2DModel": HUNYUAN | {"num_layers": 2},
    "HunyuanDiT2DControlNetModel": HUNYUAN | {"transformer_num_layers": 2},
    "CogView3PlusTransformer2DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "text_embed_dim": WIDTH,
        "time_embed_dim": 8,
        "condition_dim": 2,
        "pos_embed_max_size": 8,
        "sample_size": 8,
    },
    "AllegroTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "cross_attention_dim": 24,
        "caption_channels": WIDTH,
        "sample_height": 2,
        "sample_width": 2,
        "sample_frames": 2,
    },
    "SanaTransformer2DModel": SANA,
    "SanaControlNetModel": SANA,
    "SkyReelsV2Transformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": WIDTH,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 1,
        "rope_max_seq_len": 32,
    },
    "DiTTransformer2DModel": TRANSFORMER,
    "PixArtTransformer2DModel": TEXT_TRANSFORMER,
    "LatteTransformer3DModel": TEXT_TRANSFORMER,
    "CogVideoXTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 2,
        "text_embed_dim": WIDTH,
        "num_layers": 1,
        "sample_width": 2,
        "sample_height": 2,
        "sample_frames": 5,
        "max_text_seq_length": 16,
    },
}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    "cross_attention_dim": 2 * WIDTH,
}

# --------------------------------------------- what a pipeline needs in other form: pattern of its name -> parts, call

IMAGE = PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8))
MASK = PIL.Image.fromarray(np.repeat(np.uint8([0, 255]), 128).reshape(16, 16))
VIDEO = [IMAGE, IMAGE.transpose(PIL.Image.Transpose.ROTATE_90)]
CALL: dict[str, Any] = {
    "prompt": "a photo of a cat",
    "image": IMAGE,
    "mask_image": MASK,
    "control_image": IMAGE,
    "height": 16,
    "width": 16,
    "video": VIDEO,
    "conditioning_frames": VIDEO,
    "num_frames": 2,
    "strength": 0.8,
    "output_type": "np",
    "image_embeds": randn(1, WIDTH),
    "negative_image_embeds": randn(1, WIDTH, seed=1),
    "hint": randn(1, 3, 16, 16, seed=2),
    "class_labels": [1],
    "clean_caption": False,
    "use_resolution_binning": False,
    "max_sequence_length": 16,
    "processing_resolution": 0,
}
DROP = object()  # an argument that this pipeline is not given

# (pattern, {part: entries of its config, another class, or the part itself}, {argument: value}), later ones on top
VAE_8 = {  # halves images three times
    "block_out_channels": (4,) * 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
MOVQ = {"latent_channels": 4, "norm_type": "spatial", "block_out_channels": (32, 32), "norm_num_groups": 8}
KANDINSKY_UNET = SIMPLE_CROSS_ATTENTION | {"out_channels": 8}
ATTENTION_FIRST = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
IF_UNET = SIMPLE_CROSS_ATTENTION | {
    "in_channels": 3,
    "out_channels": 6,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
}
AUDIO = {
    "vae": {"in_channels": 1, "out_channels": 1},
    "unet": {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": WIDTH,
        "class_embeddings_concat": True,
        "cross_attention_dim": (8, 16),
    },
}


def paint_by_example_encoder():
    encoder_class = annotated_classes(
        inspect.signature(pipeline_class("PaintByExamplePipeline")).parameters["image_encoder"]
    )[0]
    return encoder_class(transformers.CLIPVisionConfig(**VISION), proj_size=WIDTH).eval()


class TorchSession:
    """What OnnxRuntimeModel needs of an inference session, without an export."""

    def __init__(self, function: Callable[..., torch.Tensor]):
        self.function = function

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="timestep", type="tensor(int64)")]

    def run(self, _, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [self.function(**{key: torch.as_tensor(value) for key, value in inputs.items()}).numpy()]


def onnx(model_class: type, function: Callable, **config) -> Callable:
    """A function that makes an ONNX part, which calls `function(model, **inputs)`."""

    def make():
        model = seeded(model_class, **MODELS[model_class.__name__] | config)
        return diffusers.OnnxRuntimeModel(TorchSession(functools.partial(function, model)))

    return make


def unet_of_onnx(unet, sample, timestep, encoder_hidden_states, class_labels=None):
    return unet(sample, timestep, encoder_hidden_states, class_labels=class_labels).sample


ONNX = {
    "unet": onnx(UNet2DConditionModel, unet_of_onnx),
    "text_encoder": onnx(transformers.CLIPTextModel, lambda encoder, input_ids: encoder(input_ids.long())[0]),
    "vae_encoder": onnx(AutoencoderKL, lambda vae, sample: vae.encode(sample).latent_dist.mean, **VAE_8),
    "vae_decoder": onnx(AutoencoderKL, lambda vae, latent_sample: vae.decode(latent_sample).sample, **VAE_8),
    "vae": onnx(AutoencoderKL, lambda vae, latent_sample: vae.decode(latent_sample).sample, **VAE_8),
}
SPECIAL: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("(?!I2V).*XL.*", {"unet": SDXL}, {}),
    (".*XLControlNet(?!XS).*", {"controlnet": SDXL}, {}),
    (".*XLControlNetXS.*", {"controlnet": {"cross_attention_dim": 2 * WIDTH}}, {}),
    (".*ControlNetXS.*", {"unet": {"layers_per_block": 2}}, {}),
    ("I2VGenXL.*", {}, {"clip_skip": None}),
    (".*Adapter.*", {"unet": ATTENTION_FIRST}, {}),
    (".*AttendAndExcite.*", {}, {"token_indices": [1, 2], "attn_res": (4, 4), "max_iter_to_alter": 2}),
    (
        ".*SparseControlNet.*",
        {"controlnet": {"use_simplified_condition_embedding": False, "conditioning_channels": 3}},
        {},
    ),
    (".*ControlNetUnion.*", {}, {"control_mode": [0]}),
    (".*Depth2Img.*", {"unet": {"in_channels": 5}, "depth_estimator": None}, {"depth_map": randn(1, 16, 16)}),
    (".*GLIGEN.*", {"unet": {"attention_type": "gated"}}, {"gligen_phrases": ["cat"], "gligen_boxes": [[0, 0, 1, 1]]}),
    (
        ".*GLIGENTextImage.*",
        {
            "unet": {"attention_type": "gated-text-image"},
            "processor": lambda: transformers.CLIPProcessor(image_processor(), tokenizer()),
        },
        {},
    ),
    (".*InstructPix2Pix.*", {"unet": {"in_channels": 8}}, {}),
    (".*Upscale.*", {"unet": {"in_channels": 7, "num_class_embeds": 1000}}, {}),
    (".*LatentUpscale.*", {"unet": {"in_channels": 8, "num_class_embeds": None}}, {}),
    (".*LDM3D.*", {"vae": {"in_channels": 6, "out_channels": 6}}, {}),
    (
        "PaintByExample.*",
        {"unet": {"in_channels": 9}, "image_encoder": paint_by_example_encoder},
        {"example_image": IMAGE},
    ),
    ("PIA.*", {"unet": {"in_channels": 9}}, {}),
    ("CycleDiffusion.*", {}, {"source_prompt": "a photo of a dog"}),
    ("TextToVideoZero.*", {}, {"t0": 1, "t1": 2, "video_length": 2}),
    ("LDMSuperResolution.*", {"unet": {"in_channels": 6, "out_channels": 3}}, {"image": randn(1, 3, 8, 8)}),
    ("LDMTextToImage.*", {"bert": "CLIPTextModel", "unet": "UNet2DConditionModel", "vqvae": "AutoencoderKL"}, {}),
    ("StableUnCLIPImg2Img.*", {}, {"image_embeds": DROP}),
    ("StableUnCLIP.*", {"unet": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}}, {}),
    ("Marigold.*", {"unet": {"in_channels": 8}, "prediction_type": "depth"}, {}),
    ("MarigoldNormals.*", {"prediction_type": "normals"}, {}),
    ("MarigoldIntrinsics.*", {"unet": {"in_channels": 12, "out_channels": 8}, "prediction_type": "intrinsics"}, {}),
    ("Kandinsky.*", {"movq": MOVQ, "unet": KANDINSKY_UNET}, {}),
    (
        "Kandinsky(?!V22|3).*",
        {"unet": {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj"}},
        {},
    ),
    ("KandinskyV22.*", {"unet": {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"}}, {}),
    (
        "KandinskyV22Controlnet.*",
        {"unet": {"addition_embed_type": "image_hint", "in_channels": 8}},
        {"hint": randn(1, 3, 64, 64, seed=2)},
    ),
    ("Kandinsky.*Inpaint.*", {"unet": {"in_channels": 9}}, {}),
    ("Kandinsky3.*", {"unet": "Kandinsky3UNet"}, {}),
    ("IF.*", {"unet": IF_UNET, "watermarker": None, "scheduler": {"variance_type": "fixed_small"}}, {}),
    ("IF.*SuperResolution.*", {"unet": {"in_channels": 6, "class_embed_type": "timestep"}}, {"original_image": IMAGE}),
    ("(AudioLDM|MusicLDM)Pipeline", AUDIO, {"audio_length_in_s": 0.1}),
    ("MusicLDM.*", {"text_encoder": "ClapModel"}, {}),
    ("DanceDiffusion.*", {}, {"audio_length_in_s": 0.512}),
    ("PixArtSigmaPAG.*", {"transformer": {"num_layers": 2}}, {}),
    ("CogVideoX.*", {}, {"num_frames": 5, "video": [IMAGE] * 5, "control_video": [IMAGE] * 5}),
    ("CogVideoX(Fun|Image).*", {"transformer": {"in_channels": 8}}, {}),
    (
        "HunyuanDiT.*",
        {"vae": VAE_8, "text_encoder_2": {}, "tokenizer_2": {}},
        {"height": 32, "width": 32, "control_image": IMAGE.resize((32, 32))},
    ),
    ("Sana.*", {"text_encoder": "Gemma2Model"}, {"complex_human_instruction": None, "height": 32, "width": 32}),
    ("SanaVideo.*", {"vae": "AutoencoderKLWan"}, {"frames": 5}),
    ("Bria.*", {}, {"output_type": "pt"}),
    (
        "SkyReels.*",  # no prompt: cleaning it needs a package
        {},
        {
            "prompt": None,
            "prompt_embeds": randn(1, 16, WIDTH),
            "negative_prompt_embeds": randn(1, 16, WIDTH, seed=1),
            "image_embeds": DROP,
            "video": [IMAGE] * 5,
            "num_frames": 5,
            "overlap_history": 1,
        },
    ),
    (
        ".*StableVideoDiffusion.*",
        {"image_encoder": {"image_size": 224, "patch_size": 112}},
        {},
    ),
    (
        ".*Pix2PixZero.*",
        {"caption_generator": None, "caption_processor": None, "inverse_scheduler": {}},
        {"source_embeds": randn(1, 77, WIDTH), "target_embeds": randn(1, 77, WIDTH, seed=1)},
    ),
    ("SkyReelsV2ImageToVideo.*", {"transformer": {"in_channels": 36, "image_dim": WIDTH, "added_kv_proj_dim": 24}}, {}),
    (
        "(StableDiffusion)?Onnx.*",
        ONNX,
        {
            "generator": None,
            "height": 64,
            "width": 64,
            "image": IMAGE.resize((64, 64)),
            "mask_image": MASK.resize((64, 64)),
        },
    ),
    ("OnnxStableDiffusionInpaint.*", {"unet": onnx(UNet2DConditionModel, unet_of_onnx, in_channels=9)}, {}),
    (
        ".*OnnxStableDiffusionUpscale.*",
        {"unet": onnx(UNet2DConditionModel, unet_of_onnx, in_channels=7, num_class_embeds=1000)},
        {},
    ),
    ("StableDiffusionParadigms.*", {"scheduler": DDIMParallelScheduler}, {}),
    ("Allegro.*", {}, {"output_type": "latent", "height": 32, "width": 32}),
    (
        "ShapE.*",
        {
            "prior": {
                "embedding_proj_dim": WIDTH,
                "clip_embed_dim": 2 * WIDTH,
                "num_embeddings": 16,
                "time_embed_dim": 16,
                "additional_embeddings": 0,
                "time_embed_act_fn": "gelu",
                "norm_in_type": "layer",
                "encoder_hid_proj_type": None,
                "added_emb_type": None,
            }
        },
        {"output_type": "latent"},
    ),
]
# what must run before the call, with the scheduler that the call will use; its result is given to the call
PREPARE: list[tuple[str, Callable[[Any], dict[str, Any]]]] = [
    ("LEditsPP.*", lambda pipe: pipe.invert(image=IMAGE.resize((32, 32)), num_inversion_steps=5, skip=0.2) and {}),
    (
        ".*DiffEdit.*",
        lambda pipe: {
            "mask_image": np.eye(8)[None],
            "image_latents": pipe.invert(prompt="a cat", image=IMAGE, num_inference_steps=5).latents,
        },
    ),
]


# ------------------------------------------------------------------------------------------------------------- building


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A hundred words, some of which mean something."""
    words = ["<s>", "</s>", "<unk>", "<mask>", "a", "photo", "of", "cat", "dog", "red", "blue"]
    vocabulary = {word: i for i, word in enumerate(words + [f"word{i}" for i in range(100 - len(words))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=77,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
    )


def image_processor():
    size = {"height": 16, "width": 16}
    return transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)


def pipeline_class(name: str) -> type[DiffusionPipeline]:
    return getattr(diffusers, name, None) or getattr(diffusers.pipelines, name)


def seeded(model_class: type, **config: Any):
    """A model with random weights, which depend on nothing else."""
    torch.manual_seed(0)
    if issubclass(model_class, transformers.PreTrainedModel):
        return model_class(model_class.config_class(**config)).eval()
    model = model_class(**config)
    return model.eval() if isinstance(model, torch.nn.Module) else model


def annotated_classes(parameter: inspect.Parameter) -> list[type]:
    """The classes that an annotation allows, in its order."""
    annotation = parameter.annotation
    return [c for c in typing.get_args(annotation) or (annotation,) if isinstance(c, type) and c is not type(None)]


def part(name: str, parameter: inspect.Parameter, config: dict[str, Any] | str):
    classes = annotated_classes(parameter)
    if name == "safety_checker":
        return None
    if "tokenizer" in name:
        return tokenizer()
    if name.endswith(("feature_extractor", "image_processor")):
        return image_processor()
    if isinstance(config, str):
        classes, config = [getattr(transformers, config, None) or getattr(diffusers, config)], {}
    for model_class in classes:
        if issubclass(model_class, SchedulerMixin):
            return model_class(**config)
        if model_class is KarrasDiffusionSchedulers:  # a second scheduler, which makes the condition
            return DDPMScheduler(**config)
        if model_class.__name__ in MODELS:
            return seeded(model_class, **MODELS[model_class.__name__] | config)
    raise NotImplementedError(f"no tiny {name}: {parameter.annotation}")


def special_parts(name: str) -> dict[str, Any]:
    configs: dict[str, Any] = {}
    for pattern, parts, _ in SPECIAL:
        if re.fullmatch(pattern, name):
            configs = merged(configs, parts)
    return configs


def merged(configs: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: configs[key] | value
        for key, value in parts.items()
        if isinstance(value, dict) and isinstance(configs.get(key), dict)
    }
    return configs | parts | both


def built_in(name: str) -> DDIMScheduler:
    """diffusers' scheduler for that pipeline."""
    config = special_parts(name).get("scheduler", {})
    if isinstance(config, type):
        return config(**LATENT | {"set_alpha_to_one": True})  # DDIMParallelScheduler's batch step always ends at x_0
    return DDIMScheduler.from_config(LATENT | config)


def build(name: str, scheduler: SchedulerMixin, **parts: Any) -> DiffusionPipeline:
    """A pipeline with that scheduler. `parts` are entries of the parts' configs, or the parts themselves."""
    cls = pipeline_class(name)
    configs = merged(special_parts(name), parts)
    components = {}
    for key, parameter in inspect.signature(cls.__init__).parameters.items():
        config = configs.get(key, {})
        if key == "scheduler":
            components[key] = scheduler
        elif callable(config):
            components[key] = config()
        elif not isinstance(config, dict | str) or key == "prediction_type":
            components[key] = config
        elif key not in ("self", "kwargs") and (parameter.default is parameter.empty or key in configs):
            components[key] = part(key, parameter, config)
    pipe = cls(**components)
    for component in pipe.components.values():
        for key, parameter in component.named_parameters() if isinstance(component, torch.nn.Module) else ():
            if key.endswith("pad_token"):  # of Z-Image, which diffusers before 0.42 leaves as the memory has it
                torch.nn.init.zeros_(parameter)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(pipe: DiffusionPipeline) -> dict[str, Any]:
    """The arguments of a call but for steps and generator."""
    name = type(pipe).__name__
    call = dict(CALL)
    for pattern, _, values in SPECIAL:
        if re.fullmatch(pattern, name):
            call |= values
    for pattern, prepare in PREPARE:
        if re.fullmatch(pattern, name):
            call |= prepare(pipe)
    parameters = inspect.signature(pipe.__call__).parameters
    return {key: value for key, value in call.items() if key in parameters and value is not DROP}
