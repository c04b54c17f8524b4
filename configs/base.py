"""Every field of a configuration, with units and bounds.

The values are those of the released model; a preset is a small difference.
Sections `model.vae`, `model.image_encoder` and `model.dit` are passed to
`ShapeVAEConfig`, `ImageEncoderConfig` and `DiTConfig`, which check them and
document each field.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The released size."""
  config = ml_collections.ConfigDict()
  config.name = "sculpt4d"
  # Default weights of sampling and evaluation: a path from the project's
  # root, or "".
  config.weights = ""
  config.model = ml_collections.ConfigDict(
    dict(vae=_vae(), image_encoder=_image_encoder(), dit=_dit())
  )
  config.mesh = _mesh()
  config.data = _data()
  config.records = _records()
  config.vae_training = _vae_training()
  config.picture_training = _picture_training()
  config.dit_training = _dit_training()
  config.distillation = _distillation()
  config.sampling = _sampling()
  config.surface = _surface()
  return config


def _vae() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      num_latents=4096,  # Latent tokens N a frame.
      token_order="drawn",  # "spatial", "anchored": `ShapeVAEConfig`.
      latent_channels=64,  # Channels C of a latent.
      width=1024,
      num_heads=16,
      num_encoder_layers=8,
      num_decoder_layers=16,
      num_freqs=8,  # Fourier features of a position.
      include_pi=False,
      point_feats=4,  # Normal and sharp-edge label.
      downsample_ratio=20,  # Surface rows read for each query.
      field_mlp_ratio=4,
      use_field_norm=True,
      scale_factor=1.0039506158752403,  # Scale of diffusion latents.
      dtype="bfloat16",  # Dtype of the computation.
      scan_unroll=1,
      remat_policy=ml_collections.config_dict.placeholder(str),
    )
  )


def _image_encoder() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      image_size=518,  # Side in pixels; a multiple of patch_size.
      patch_size=14,
      stem_patch_size=0,  # Pixels; above 0 embeds patches in two levels.
      position_init="normal",  # Or "sinusoidal", for training from nothing.
      width=1024,
      num_layers=24,
      num_heads=16,
      mlp_ratio=4,
      layer_scale_init=1.0,
      dtype="bfloat16",
      scan_unroll=1,
      remat_policy=ml_collections.config_dict.placeholder(str),
    )
  )


def _dit() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      depth=21,
      width=2048,
      num_heads=16,
      latent_channels=64,  # The same as the autoencoder's.
      context_width=1024,  # The image encoder's width.
      num_token_indices=0,  # Tokens N with an index embedding; 0: a set.
      # Whether objects of the training are turned and moved until the camera
      # looks level at their middle. What is sampled is set upright afterwards
      # with the elevation that the view head reads off the pictures.
      picture_frame=False,
      mlp_ratio=4,
      num_moe_blocks=6,  # Number of last blocks with experts.
      num_experts=8,
      num_experts_per_token=2,
      # "sparse", "full", "token" (a token sees itself in all frames), "none".
      temporal_mode="sparse",
      temporal_block_size=128,  # Tokens; divides num_latents.
      temporal_schedule=(1, 1, 2, 4, 8, 16),  # Stride by distance in frames.
      temporal_anchor_frames=(0,),  # Seen by every query.
      temporal_rope_theta=10000.0,
      router_aux_loss_weight=0.01,
      step_embedding=False,  # True in few-step models.
      dtype="bfloat16",
      scan_unroll=1,
      remat_policy="full",
    )
  )


def _mesh() -> ml_collections.ConfigDict:
  """Device mesh of a training; see `partitioning.py`.

  One axis may be -1: it takes all remaining devices.
  """
  return ml_collections.ConfigDict(
    dict(
      data=1,  # Copies of the parameters.
      fsdp=-1,  # Shards of the parameters; clips are split over it too.
      expert=1,  # Shards of the experts; tokens are exchanged.
      context=1,  # Shards of a clip's frames; divides frames and heads.
      tensor=1,  # Shards of heads and hidden units.
    )
  )


def _data() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      num_clips=4096,  # Clips of the training split.
      num_held_out=64,  # Clips of the held-out split.
      num_frames=16,  # Frames F of a clip.
      # Seeds of the first clips; the splits must not overlap.
      first_seed=100_000,
      held_out_seed=0,
      # Surface points by area and on sharp edges, distance samples near the
      # surface and in the cube, for each frame.
      num_uniform=81920,
      num_sharp=0,
      num_near=8192,
      num_volume=8192,
      image_size=512,  # Side in pixels.
      max_azimuth=0.4,  # Largest camera azimuth from the front, radians.
      elevations=(0.0, 0.4),  # Radians above the horizon.
      border_ratio=0.15,  # Margin, as a fraction of the image side.
      # Fraction of clips with thin limbs, wings, tails and fins, from any side.
      variety=0.0,
      # Fraction of clips with rigid things: balls, blocks, vessels, furniture.
      things=0.0,
      # Fraction of the rest with figures as games have them: people, beasts.
      figures=0.0,
      # Frames of the clips that those of num_frames are cut from; 0: as many.
      clip_frames=0,
    )
  )


def _records() -> ml_collections.ConfigDict:
  """Records of assets that training reads instead of procedural clips.

  Numbers of frames, pixels and surface points of an example are those of
  `data`; a record may have more.
  """
  return ml_collections.ConfigDict(
    dict(
      # Data sets from launch.prepare_data, separated by commas; "" trains on
      # procedural clips.
      folders="",
      # Fraction of a batch's clips that are records; the others are
      # procedural. 1 trains only on records.
      share=1.0,
      num_parts=0,  # Parts of a surface read for an example; 0 reads all.
      # Whether the object is rotated about y to face the camera. Posteriors
      # are then stored for every view.
      turn_to_camera=False,
      max_elevation=1.5708,  # Largest elevation of a view, radians.
      border_ratio=(0.1, 0.25),  # Range of the margin; drawn for an example.
      mirror=True,  # Swaps left and right half the time.
      reverse_time=True,  # Reverses time half the time.
      colour_jitter=0.1,  # Change of brightness, contrast, saturation, +-.
      # Reads precomputed tokens of a frozen image encoder instead of pictures.
      # At the full size 45 MB a view, twice that with mirrors.
      use_features=False,
      num_threads=4,  # Threads that read and decode in each process.
      num_workers=0,  # Worker processes instead of threads.
      prefetch=4,  # Batches read ahead.
      # Local folder that shards of a gs:// or s3:// data set are copied to
      # when they are first read; "" reads ranges of them.
      cache="",
    )
  )


def _optimizer(
  learning_rate: float, num_steps: int
) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      learning_rate=learning_rate,  # Peak learning rate.
      num_steps=num_steps,
      warmup_steps=500,
      final_fraction=0.02,  # Final rate as a fraction of the peak.
      decay_fraction=1.0,  # Fraction of steps, the last ones, that decay.
      b1=0.9,
      b2=0.99,
      epsilon=1e-6,
      weight_decay=0.01,
      max_grad_norm=1.0,
      ema_decay=0.999,
      accumulation_steps=1,  # Micro-batches per step (gradient accumulation).
      # Peak learning rate of the temporal layers, if different.
      temporal_learning_rate=ml_collections.config_dict.placeholder(float),
      # Muon for the blocks' matrices; see OptimizerConfig.
      use_muon=False,
      # Frozen groups, see training/parameter_groups.py; ("base",) freezes all
      # parameters of the per-frame model.
      frozen=(),
    )
  )


def _vae_training() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      optimizer=_optimizer(1e-4, 100_000),
      batch_size=32,  # Clips.
      num_frames=4,  # Frames of each clip.
      num_queries=4096,  # Distance samples of each frame.
      field_band=0.02,  # The field is distance / band, clipped to +-1.
      kl_weight=1e-3,
      initial_log_variance=-4.0,  # Initial log-variance of the posterior.
      decoder_only=False,  # Keep the encoder: latents and DiTs stay valid.
      # Largest noise on latents, relative to them: a decoder of sampled ones.
      latent_noise=0.0,
      seed=0,
      init_from="",  # Folder of weights to start from, or "".
      eval_clips=32,  # Held-out clips to evaluate; 0 evaluates nothing.
      **_schedule("eval/field_error"),
    )
  )


def _picture_training() -> ml_collections.ConfigDict:
  """Pretraining of an image encoder, before the DiT's training.

  See `training/tasks/pictures.py`; 0 steps skip it.
  """
  return ml_collections.ConfigDict(
    dict(
      optimizer=_optimizer(1e-3, 0),  # 0 steps: no pretraining.
      batch_size=32,  # Clips.
      num_frames=2,  # Frames of each clip.
      num_queries=128,  # Distance samples of each frame.
      field_band=0.3,  # See vae_training.
      num_head_layers=1,  # Layers of the temporary decoder.
      seed=0,
      eval_clips=32,
      **_schedule("eval/field_error"),
    )
  )


def _dit_training() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      optimizer=_optimizer(1e-5, 24_000),
      batch_size=32,  # Clips, as in the paper.
      # Consecutive frames of a clip in a step, drawn anew each time; 0: all.
      # Frames of a clip are alike: few frames of many clips teach more a step.
      num_frames=0,
      # Fraction of clips whose context is zeroed, for classifier-free guidance.
      # Hunyuan3D 2.1 does not state it; 0.1 is usual.
      context_dropout=0.1,
      # Fraction of clips whose frames are denoised independently.
      temporal_dropout=0.0,
      time_sampling="uniform",  # See `diffusion/time_sampling.py`.
      frame_times=_frame_times(),
      train_image_encoder=False,  # True if there is no pretrained one.
      # Weight of the auxiliary loss that predicts the field from the encoder's
      # tokens, its points a frame, and its band; see `DiTTaskConfig`.
      context_field_weight=0.0,
      context_field_points=64,
      # Weight, frames (0: all) and quantile of the auxiliary loss on decoded
      # shapes, and smallest factor of the noise; see `DiTTaskConfig`.
      shape_weight=0.0,
      shape_frames=0,
      shape_quantile=0.5,
      min_temperature=1.0,
      max_temperature=1.0,
      own_estimates=0.0,  # Fraction of clips that mend the model's estimate.
      field_band=0.3,
      init_from="",  # Folder of weights to start from, or "".
      latent_choices=1,  # Draws of the VAE's query rows for each clip.
      lora=_lora(),
      samples=_samples(),
      seed=0,
      eval_clips=32,
      **_schedule("eval/flow_loss"),
    )
  )


def _distillation() -> ml_collections.ConfigDict:
  """Training of a few-step student; see `training/tasks/distillation.py`."""
  return ml_collections.ConfigDict(
    dict(
      optimizer=_optimizer(1e-5, 5_000),
      batch_size=32,  # Clips.
      guidance_scale=5.0,  # Guidance of the teacher; the student needs none.
      shortcut_share=0.25,  # Fraction of clips on which long steps are learned.
      shortcut_start=0.2,  # Fraction of steps before these clips count.
      time_sampling="uniform",
      min_temperature=1.0,  # Lowest factor of the noise; see `dit_training`.
      lora=_lora(),
      seed=0,
      init_from="",  # Folder of the teacher's weights.
      eval_clips=32,
      **_schedule("eval/guidance_loss"),
    )
  )


def _schedule(best_metric: str) -> dict:
  """Logging, evaluation and saving of a stage; see `training/schedule.py`."""
  return dict(
    log_every=20,  # Steps between lines of metrics.
    eval_every=1000,  # Steps between evaluations on held-out clips.
    save_every=500,  # Steps between checkpoints.
    keep_checkpoints=2,  # Newest checkpoints kept.
    keep_best=0,  # Best checkpoints kept in addition, by this metric:
    best_metric=best_metric,  # Name in the log, such as "sample/chamfer".
    export="last",  # Weights written at the end; or "best".
    profile=(),  # First step and number of steps to trace: (100, 5).
    hang_seconds=1800.0,  # Longer steps end the run with code 75; 0 never.
  )


def _frame_times() -> ml_collections.ConfigDict:
  """Times of single frames in training; see `diffusion/frame_times.py`.

  0.25 and 0.25 train a model that accepts known frames without noise.
  """
  return ml_collections.ConfigDict(
    dict(
      known=0.0,  # Fraction of clips with known frames, not in the loss.
      independent=0.0,  # Fraction of clips with a time for every frame.
      clean_from=0.9,  # Smallest time of known frames.
    )
  )


def _lora() -> ml_collections.ConfigDict:
  """Adapters that are trained instead of the DiT; see `models/lora.py`."""
  return ml_collections.ConfigDict(
    dict(
      rank=0,  # 0 trains the DiT itself.
      alpha=16.0,  # Adapters are scaled by alpha / rank.
      # Names of linear maps: a kind of layer, or single maps ("query", "fc1").
      modules=("spatial_attention", "cross_attention", "temporal_attention"),
      also_train=(),  # Further groups of parameters to train, as ("temporal",).
    )
  )


def _samples() -> ml_collections.ConfigDict:
  """Held-out clips sampled in training; see `training/sample_callback.py`."""
  return ml_collections.ConfigDict(
    dict(
      every=0,  # Steps between samples; 0 never.
      num_clips=2,  # Number of clips, the first held-out ones.
      num_steps=20,  # Steps of the sampler; the rest is config.sampling.
      resolution=64,  # Cells along a side of the surface's grid.
      num_points=5000,  # Points of a surface for the metrics.
    )
  )


def _sampling() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      num_frames=16,  # Frames F that the input is resampled to.
      # "euler", "ab2" (Adams-Bashforth) or "heun"; launch.sample --preset
      # offers good combinations of solver, steps and interval.
      solver="euler",
      num_steps=50,  # Times including both ends: one interval less.
      guidance_scale=5.0,  # 1 turns guidance off.
      guidance_interval=(0.0, 1.0),  # Guided times; 0 noise, 1 data.
      keep_difference=1,  # Calls that reuse a guidance difference.
      # Treatment of known frames: "path", noised like the others, or "clean",
      # for weights trained with dit_training.frame_times.
      known="path",
      # Above 1: steps long near the noise, short near the data. Others' "shift
      # 3", more steps at high noise, is 1/3 here.
      timestep_shift=1.0,
      # "independent" noise for every frame, or "shared" by all of them.
      noise="independent",
      # Factor of the noise: 1 draws from the distribution that was learned, less
      # gives shapes nearer to its mean; at 0 all seeds give one result.
      temperature=1.0,
      # Whether the mirrored clip is sampled too; the mean of both shapes.
      mirror=False,
      temporal_mode="sparse",  # See model.dit.temporal_mode.
      seed=0,
      # Save memory at the cost of time; `python -m launch.sample --plan` shows
      # the needs of a device. See `SamplingConfig`.
      guidance_in_turns=False,
      cache_context=True,
      offload=False,
      frames_at_a_time=0,  # For layers within a frame; 0 takes all.
      weights="stored",  # Or "int8": half the size, with a small error.
      stream_layers=False,  # Blocks' weights on the host; copied ahead of use.
      skips_on_host=False,  # Outputs of blocks that later ones take, too.
      memory="as_set",  # "auto" chooses savings by the device's memory.
      # Gradient steps after each call that fit shapes to the object's outlines,
      # their size, and the first time of them; for weights with a view head.
      outline_steps=0,
      outline_rate=0.03,
      outline_from=0.2,
    )
  )


def _surface() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      resolution=384,  # Cells along a side.
      bounds=1.01,  # The grid extends from -bounds to bounds.
      level=0.0,
      min_resolution=63,  # Smallest resolution of the coarsest grid.
      band=0.95,  # Field values near the surface, for finer grids.
      chunk_size=65536,  # Points evaluated at a time.
      # Components below this fraction of the largest one's area are dropped.
      min_component_area=0.02,
      max_components=0,  # Number of largest ones kept; 0 keeps all.
      max_faces=0,  # Largest number of faces; 0 does not simplify.
      # "exact" or "lean"; "dense", "flashvdm" and "hunyuan3d" reproduce
      # Hunyuan3D 2.1. See geometry/isosurface.py.
      grid="exact",
      vertex_scale="exact",  # Or "hunyuan3d", 0.26 % too small.
      frames_at_a_time=0,  # 0: one on a CPU, several on an accelerator.
    )
  )
