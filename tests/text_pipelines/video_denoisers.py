"""Small denoisers of the video models, and of the picture models that have none elsewhere."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from .denoisers import FLOW, WIDTH, kl_like, make, parts, small_vaes, transformers_2d, videos


def lumina2() -> dict[str, Any]:
    return {"vae": kl_like(0.3611, 0.1159), "transformer": transformers_2d.lumina2(), "scheduler": FLOW()}


def hidream() -> dict[str, Any]:
    transformer = make(
        diffusers.HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=(1, 3),
    )
    return {"vae": kl_like(0.3611, 0.1159), "transformer": transformer, "scheduler": FLOW()}


def sana(**config: Any) -> dict[str, Any]:
    scheduler = diffusers.SCMScheduler() if config else FLOW()
    return {"vae": small_vaes.deep_compression(), "transformer": parts.sana(**config), "scheduler": scheduler}


def pixart() -> dict[str, Any]:
    return {"vae": small_vaes.kl(), "transformer": transformers_2d.pixart(), "scheduler": diffusers.DDIMScheduler()}


def auraflow() -> dict[str, Any]:
    transformer = make(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    return {"vae": small_vaes.kl(scaling_factor=0.13025), "transformer": transformer, "scheduler": FLOW()}


def hunyuan_dit() -> dict[str, Any]:
    transformer = transformers_2d.hunyuan(diffusers.HunyuanDiT2DModel, num_layers=4, text_len=77, text_len_t5=256)
    return {
        "vae": small_vaes.kl(scaling_factor=0.13025),
        "transformer": transformer,
        "scheduler": diffusers.DDPMScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def hunyuan_image() -> dict[str, Any]:
    transformer = make(
        diffusers.HunyuanImageTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=False,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        rope_axes_dim=(4, 4),
    )
    vae = small_vaes.hunyuan_image(latent_channels=4)
    guider = diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1)
    return {"vae": vae, "transformer": transformer, "scheduler": FLOW(), "guider": guider, "ocr_guider": guider}


def cogview4() -> dict[str, Any]:
    return {"vae": kl_like(1.0, None), "transformer": transformers_2d.cogview4(), "scheduler": FLOW()}


def bria() -> dict[str, Any]:
    transformer = make(
        diffusers.BriaTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return {"vae": small_vaes.kl(scaling_factor=0.13025), "transformer": transformer, "scheduler": FLOW()}


def packed(kind: Any) -> dict[str, Any]:
    transformer = make(
        kind,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return {"vae": kl_like(0.3611, 0.1159), "transformer": transformer, "scheduler": FLOW()}


def ovis() -> dict[str, Any]:
    return packed(diffusers.OvisImageTransformer2DModel)


def longcat() -> dict[str, Any]:
    return {**packed(diffusers.LongCatImageTransformer2DModel), "text_processor": None}


def _hunyuan_vae() -> Any:
    return small_vaes.hunyuan_video(latent_channels=4, mid_block_add_attention=False)


def hunyuan_video(**config: Any) -> dict[str, Any]:
    transformer = make(
        diffusers.HunyuanVideoTransformer3DModel,
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 1,
            "patch_size_t": 1,
            "guidance_embeds": True,
            "text_embed_dim": WIDTH,
            "pooled_projection_dim": WIDTH,
            "rope_axes_dim": (2, 4, 4),
            **config,
        },
    )
    return {"vae": _hunyuan_vae(), "transformer": transformer, "scheduler": FLOW()}


def hunyuan_video_15() -> dict[str, Any]:
    transformer = make(
        diffusers.HunyuanVideo15Transformer3DModel,
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=16,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = small_vaes.hunyuan_video_15(
        latent_channels=4,
        block_out_channels=(16, 16),
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    return {"vae": vae, "transformer": transformer, "scheduler": FLOW(), "guider": guider}


def skyreels() -> dict[str, Any]:
    transformer = make(
        diffusers.SkyReelsV2Transformer3DModel,
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    scheduler = diffusers.UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True)
    return {"vae": small_vaes.wan(), "transformer": transformer, "scheduler": scheduler}


def cogvideox() -> dict[str, Any]:
    transformer = videos.cogvideox(text_length=16)
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return {"vae": small_vaes.cogvideox(4), "transformer": transformer, "scheduler": scheduler}


def mochi() -> dict[str, Any]:
    transformer = make(
        diffusers.MochiTransformer3DModel,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return {
        "vae": small_vaes.mochi(),
        "transformer": transformer,
        "scheduler": FLOW(),
        "force_zeros_for_empty_prompt": True,
    }


def allegro() -> dict[str, Any]:
    transformer = make(
        diffusers.AllegroTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=WIDTH,
    )
    vae = small_vaes.allegro()
    return {"vae": vae, "transformer": transformer, "scheduler": diffusers.DDIMScheduler()}


def easyanimate() -> dict[str, Any]:
    transformer = make(
        diffusers.EasyAnimateTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=16,
        sample_height=16,
        patch_size=2,
    )
    vae = small_vaes.magvit(latent_channels=4, spatial_group_norm=False)
    return {"vae": vae, "transformer": transformer, "scheduler": FLOW()}


def kandinsky5(vae: Any = None) -> dict[str, Any]:
    vae = vae or _hunyuan_vae()
    channels = vae.config.latent_channels
    transformer = make(
        diffusers.Kandinsky5Transformer3DModel,
        in_visual_dim=channels,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=32,
        out_visual_dim=channels,
        patch_size=(1, 2, 2),
        model_dim=48,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(8, 8, 8),
        visual_cond=False,
    )
    return {"vae": vae, "transformer": transformer, "scheduler": FLOW()}


def kandinsky5_pictures() -> dict[str, Any]:
    return kandinsky5(small_vaes.kl(16, scaling_factor=0.3611))


class NoSafetyChecker(torch.nn.Module):
    """Lets everything through; the real one is larger than the pipeline."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_none", torch.zeros(1))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def _cosmos_transformer(channels: int, *, mask: int = 0, width: int = WIDTH) -> Any:
    return make(
        diffusers.CosmosTransformer3DModel,
        in_channels=channels + mask,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=width,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=False,  # which would need torchvision
        extra_pos_embed_type="learnable",
    )


def cosmos() -> dict[str, Any]:
    vae = small_vaes.cosmos(
        latent_channels=4,
        patch_size=4,
        patch_type="haar",
        scaling_factor=1.0,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", final_sigmas_type="sigma_min"
    )
    return {
        "vae": vae,
        "transformer": _cosmos_transformer(4),
        "scheduler": scheduler,
        "safety_checker": NoSafetyChecker(),
    }


def cosmos2() -> dict[str, Any]:
    return {
        "vae": small_vaes.wan(),
        "transformer": _cosmos_transformer(16),
        "scheduler": FLOW(use_karras_sigmas=True),
        "safety_checker": NoSafetyChecker(),
    }


def cosmos25() -> dict[str, Any]:
    return {
        "vae": small_vaes.wan(),
        "transformer": _cosmos_transformer(16, mask=1, width=3 * WIDTH),  # its text is that of all layers
        "scheduler": diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        "safety_checker": NoSafetyChecker(),
    }


def ltx2() -> dict[str, Any]:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    transformer = make(
        diffusers.LTX2VideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=WIDTH,
        rope_double_precision=False,
        rope_type="split",
        perturbed_attn=True,
    )
    connectors = make(
        LTX2TextConnectors,
        caption_channels=WIDTH,
        text_proj_in_factor=4,
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
    )
    vae = small_vaes.ltx_2_of_one_level()
    audio_vae = make(
        diffusers.AutoencoderKLLTX2Audio,
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vocoder = make(
        LTX2Vocoder,
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    return {
        "vae": vae,
        "audio_vae": audio_vae,
        "transformer": transformer,
        "connectors": connectors,
        "vocoder": vocoder,
        "scheduler": FLOW(),
    }
