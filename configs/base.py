"""Every field of a configuration, with units and bounds.

The values are those of the released model; a preset is a small difference.
Sections `model.vae`, `model.image_encoder` and `model.dit` are handed to
`ShapeVAEConfig`, `ImageEncoderConfig` and `DiTConfig`, which check them and
document each field.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The released size."""
  config = ml_collections.ConfigDict()
  config.name = "sculpt4d"
  # Weights that sampling and evaluation take when none are given: a path from
  # the project's root, or "".
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
      token_order="drawn",  # Or "spatial"; see `ShapeVAEConfig`.
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
      scale_factor=1.0039506158752403,  # Of diffusion latents.
      dtype="bfloat16",  # Of the computation.
      scan_unroll=1,
      remat_policy=ml_collections.config_dict.placeholder(str),
    )
  )


def _image_encoder() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      image_size=518,  # Pixels a side; a multiple of patch_size.
      patch_size=14,
      stem_patch_size=0,  # Pixels; above 0 patches are embedded in two levels.
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
      latent_channels=64,  # As the autoencoder's.
      context_width=1024,  # The image encoder's width.
      num_token_indices=0,  # Tokens N known by their index; 0: a set.
      mlp_ratio=4,
      num_moe_blocks=6,  # The last ones.
      num_experts=8,
      num_experts_per_token=2,
      # "sparse", "full", "token" (a token sees itself in all frames), "none".
      temporal_mode="sparse",
      temporal_block_size=128,  # Tokens; divides num_latents.
      temporal_schedule=(1, 1, 2, 4, 8, 16),  # Stride by distance in frames.
      temporal_anchor_frames=(0,),  # Seen by every query.
      temporal_rope_theta=10000.0,
      router_aux_loss_weight=0.01,
      step_embedding=False,  # True in models of few steps.
      dtype="bfloat16",
      scan_unroll=1,
      remat_policy="full",
    )
  )


def _mesh() -> ml_collections.ConfigDict:
  """How the devices of a training are used; see `partitioning.py`.

  -1, for one axis, takes all devices that the others leave.
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
      num_clips=4096,  # Of the training split.
      num_held_out=64,  # Of the held-out split.
      num_frames=16,  # F of a clip.
      # Seeds of the first clips; the splits must not overlap.
      first_seed=100_000,
      held_out_seed=0,
      # Surface points by area and on sharp edges, distance samples near the
      # surface and in the cube, for each frame.
      num_uniform=81920,
      num_sharp=0,
      num_near=8192,
      num_volume=8192,
      image_size=512,  # Pixels a side.
      max_azimuth=0.4,  # Radians; cameras look from the front, +- this.
      elevations=(0.0, 0.4),  # Radians above the horizon.
      border_ratio=0.15,  # Of the picture, left free around the object.
      # Share of clips with thin limbs, wings, tails and fins, from anywhere.
      variety=0.0,
    )
  )


def _records() -> ml_collections.ConfigDict:
  """Records of assets that training reads in place of procedural clips.

  Of `data`, they take the numbers of frames, pixels and surface points: those
  that an example has, which may be fewer than a record has.
  """
  return ml_collections.ConfigDict(
    dict(
      # Data sets that launch.prepare_data wrote, one or more, with commas
      # between them; "" trains on procedural clips.
      folders="",
      # Share of the clips of a batch that are records; the others are
      # procedural clips. 1 trains on records alone.
      share=1.0,
      num_parts=0,  # Parts of a surface that are read at a time; 0 reads all.
      # Whether the object is turned about y until the camera stands in front
      # of it. Posteriors are then kept for every view.
      turn_to_camera=False,
      max_elevation=1.5708,  # Radians; steeper views are left out.
      border_ratio=(0.1, 0.25),  # Of the picture, left free; drawn within.
      mirror=True,  # Left and right, half the time.
      reverse_time=True,  # Half the time.
      colour_jitter=0.1,  # Brightness, contrast, saturation vary by +- this.
      # Reads tokens of the image encoder that were computed once, instead of
      # pictures; for an encoder that does not learn. 45 MB a view and side of
      # the full size.
      use_features=False,
      num_threads=4,  # That read and decode, in each process.
      num_workers=0,  # Processes that do so instead of threads.
      prefetch=4,  # Batches that are read ahead.
      # Folder on this machine's disk that shards of a gs:// or s3:// data set
      # are copied to when they are first read; "" reads ranges of them.
      cache="",
    )
  )


def _optimizer(learning_rate, num_steps) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      learning_rate=learning_rate,  # Peak.
      num_steps=num_steps,
      warmup_steps=500,
      final_fraction=0.02,  # Of the peak, at the end of the decay.
      decay_fraction=1.0,  # Of the steps, the last ones, that decay.
      b1=0.9,
      b2=0.99,
      epsilon=1e-6,
      weight_decay=0.01,
      max_grad_norm=1.0,
      ema_decay=0.999,
      accumulation_steps=1,  # Micro-batches per step (gradient accumulation).
      # Peak for the temporal layers, where it differs.
      temporal_learning_rate=ml_collections.config_dict.placeholder(float),
      # Orthogonalised momentum for the blocks' matrices; see OptimizerConfig.
      use_muon=False,
      # Groups that do not learn, see training/parameter_groups.py: ("base",) is all that
      # the per-frame model has.
      frozen=(),
    )
  )


def _vae_training() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      optimizer=_optimizer(1e-4, 100_000),
      batch_size=32,  # Clips.
      num_frames=4,  # Taken of each clip.
      num_queries=4096,  # Distance samples taken of each frame.
      field_band=0.02,  # The field is distance / band, cut at +-1.
      kl_weight=1e-3,
      initial_log_variance=-4.0,  # Of the posterior.
      seed=0,
      init_from="",  # Folder of weights to start from, or "".
      eval_clips=32,  # Held-out clips of an evaluation; 0 evaluates nothing.
      **_schedule("eval/field_error"),
    )
  )


def _picture_training() -> ml_collections.ConfigDict:
  """The image encoder's lesson before the DiT's training, if it has steps.

  For an encoder that starts from nothing; see `training/tasks/pictures.py`.
  """
  return ml_collections.ConfigDict(
    dict(
      optimizer=_optimizer(1e-3, 0),  # 0 steps: no lesson.
      batch_size=32,  # Clips.
      num_frames=2,  # Taken of each clip.
      num_queries=128,  # Distance samples taken of each frame.
      field_band=0.3,  # As of the autoencoder.
      num_head_layers=1,  # Of the decoder, which is left behind.
      seed=0,
      eval_clips=32,
      **_schedule("eval/field_error"),
    )
  )


def _dit_training() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      optimizer=_optimizer(1e-5, 24_000),
      batch_size=32,  # Clips; the paper's.
      # Share of clips whose context is zeroed, for classifier-free guidance.
      # Hunyuan3D 2.1 does not say; 0.1 is usual.
      context_dropout=0.1,
      # Share of clips whose frames are denoised one by one in training.
      temporal_dropout=0.0,
      time_sampling="uniform",  # Or "logit_normal".
      frame_times=_frame_times(),
      train_image_encoder=False,  # True where no pretrained one exists.
      # Weight of reading the field off an untrained encoder's tokens, points a
      # frame that it is read at, and its band; see `DiTTaskConfig`.
      context_field_weight=0.0,
      context_field_points=64,
      field_band=0.3,
      init_from="",  # Folder of weights to start from, or "".
      latent_choices=1,  # Draws of the VAE's query rows kept for each clip.
      lora=_lora(),
      samples=_samples(),
      seed=0,
      eval_clips=32,
      **_schedule("eval/flow_loss"),
    )
  )


def _distillation() -> ml_collections.ConfigDict:
  """Few steps by training; see `training/tasks/distillation.py`."""
  return ml_collections.ConfigDict(
    dict(
      optimizer=_optimizer(1e-5, 5_000),
      batch_size=32,  # Clips.
      guidance_scale=5.0,  # Of the teacher; the student needs none.
      shortcut_share=0.25,  # Of the clips; they teach long steps.
      shortcut_start=0.2,  # Of the steps, before which they do not count.
      time_sampling="uniform",
      lora=_lora(),
      seed=0,
      init_from="",  # Folder of the teacher's weights.
      eval_clips=32,
      **_schedule("eval/guidance_loss"),
    )
  )


def _schedule(best_metric) -> dict:
  """When a stage logs, evaluates and saves; see `training/schedule.py`."""
  return dict(
    log_every=20,  # Steps between lines of metrics.
    eval_every=1000,  # Steps between evaluations on held-out clips.
    save_every=500,  # Steps between checkpoints.
    keep_checkpoints=2,  # The newest.
    keep_best=0,  # Best checkpoints kept in addition, by this metric:
    best_metric=best_metric,  # As it is logged; "sample/chamfer" for instance.
    export="last",  # Or "best": the weights that are written at the end.
    profile=(),  # First step and number of steps to trace, as (100, 5).
    hang_seconds=1800.0,  # A longer step ends the run with code 75; 0 never.
  )


def _frame_times() -> ml_collections.ConfigDict:
  """Times of single frames in training; see `diffusion/frame_times.py`.

  0.25 and 0.25 make a model that takes known frames as they are.
  """
  return ml_collections.ConfigDict(
    dict(
      known=0.0,  # Share of clips with known frames, left out of the loss.
      independent=0.0,  # Share of clips with a time for every frame.
      clean_from=0.9,  # Known frames have times from here to 1.
    )
  )


def _lora() -> ml_collections.ConfigDict:
  """Adapters that are trained in place of the DiT; see `models/lora.py`."""
  return ml_collections.ConfigDict(
    dict(
      rank=0,  # 0 trains the DiT itself.
      alpha=16.0,  # What is added is scaled by alpha / rank.
      # Names in the path of a linear map: a kind of layer, or "query", "fc1".
      modules=("spatial_attention", "cross_attention", "temporal_attention"),
      also_train=(),  # Further groups of parameters to train, as ("temporal",).
    )
  )


def _samples() -> ml_collections.ConfigDict:
  """Held-out clips sampled while the DiT is trained; `training/sample_callback.py`."""
  return ml_collections.ConfigDict(
    dict(
      every=0,  # Steps; 0 never.
      num_clips=2,  # The first held-out ones.
      num_steps=20,  # Of the sampler; all else is config.sampling's.
      resolution=64,  # Of the surface's grid.
      num_points=5000,  # A surface, of the metrics.
    )
  )


def _sampling() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      num_frames=16,  # F that the input is resampled to.
      # "euler", "ab2" (Adams-Bashforth) or "heun"; launch.sample --preset has
      # good sets of solver, steps and interval.
      solver="euler",
      num_steps=50,  # Times, both ends included: one interval less.
      guidance_scale=5.0,  # 1 turns guidance off.
      guidance_interval=(0.0, 1.0),  # Guided times; 0 noise, 1 data.
      keep_difference=1,  # Calls that a guidance difference serves.
      # How known frames enter: "path", noised as the others, or "clean", for
      # weights trained with dit_training.frame_times.
      known="path",
      # Above 1: steps long near the noise, short near the data. Others' "shift
      # 3", more steps at high noise, is 1/3 here.
      timestep_shift=1.0,
      # "independent" noise for every frame, or "shared" by all of them.
      noise="independent",
      temporal_mode="sparse",  # See model.dit.temporal_mode.
      seed=0,
      # Less memory for more time; `python -m launch.sample --plan` tells what
      # a device needs. See `SamplingConfig`.
      guidance_in_turns=False,
      cache_context=True,
      offload=False,
      frames_at_a_time=0,  # Of layers within a frame; 0 takes all.
      weights="stored",  # Or "int8": half the transformer's, and a small error.
      memory="as_set",  # "auto" chooses the savings that the device needs.
    )
  )


def _surface() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      resolution=384,  # Cells a side.
      bounds=1.01,  # The grid spans +- this.
      level=0.0,
      min_resolution=63,  # Of the coarsest grid.
      band=0.95,  # Of the field: finer grids are evaluated within it.
      chunk_size=65536,  # Points evaluated at a time.
      # Components smaller than this share of the largest one's area go.
      min_component_area=0.02,
      max_components=0,  # The largest kept; 0 keeps all that are large enough.
      max_faces=0,  # Of each mesh; 0 does not simplify.
      # "exact", or what Hunyuan3D 2.1's code does, to compare with it: "dense",
      # "flashvdm", "hunyuan3d". See geometry/isosurface.py.
      grid="exact",
      vertex_scale="exact",  # Or "hunyuan3d", 0.26 % too small.
    )
  )
