"""What became of the keys of the original scripts' flat config files; docs/moving.md shows it."""

from __future__ import annotations

RENAMED = {
    "model_path": "model.path",
    "model_revision": "model.revision",
    "model_name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "train_data_path": "data.train",
    "val_data_path": "data.val",
    "data_root": "data.root",
    "teacher_pool_file": "data.teachers",
    "teacher_data_path": "data.teachers",
    "num_teacher_samples": "data.num_teachers",
    "max_total_length": "data.max_tokens",
    "model_max_length": "data.max_tokens",
    "dataloader_num_workers": "data.num_workers",
    "detection_enabled": "detection.enabled",
    "detection_num_queries": "detection.num_queries",
    "detection_decoder_num_layers": "detection.num_layers",
    "detection_bbox_weight": "loss.l1_weight",
    "detection_giou_weight": "loss.giou_weight",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "llm_lr": "train.language_learning_rate",
    "vision_lr": "train.vision_learning_rate",
    "merger_lr": "train.merger_learning_rate",
    "detection_lr": "train.head_learning_rate",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.lr_scheduler",
    "optim": "train.optimizer",
    "collator_type": "train.packing",
}
"""Keys whose new name is not simply a section before the old one."""

_PRECISION = (
    "remove it: model.dtype is of frozen weights, train.autocast of products; trained weights are float32"
)
_CAPTIONS = "remove it: the head scores the texts of data.labels and writes no captions"
_NO_SUCH_PART = "remove it: the head has no such part, see docs/head.md"
_FOCAL = "remove it: a score is trained to be the IoU of its box, by quality focal loss without settings"
_COORDINATES = "remove it: boxes are written as the model's family does: docs/serving.md"
_OF_THE_MODEL = "remove it: it is read from the model's own config.json"
_SHORTER = "remove it: train.max_steps ends a run early, a shorter sample file makes a smaller set"
_PRINTED = "remove it: --debug and --quiet say how much is printed"
_WORKERS = "remove it: data.num_workers is how many processes decode and resize images ahead of training"

REMOVED = {
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "mixed_precision": _PRECISION,
    "use_flash_attention": "remove it: write model.attn_implementation, flash_attention_2 or sdpa",
    "coordinate_tokens_enabled": _COORDINATES,
    "coordinate_loss_weight": _COORDINATES,
    "coordinate_lr": _COORDINATES,
    "max_coord_value": _COORDINATES,
    "detection_objectness_weight": "remove it: loss.class_weight weighs the scores, there is no objectness",
    "detection_focal_loss_gamma": _FOCAL,
    "detection_focal_loss_alpha": _FOCAL,
    "detection_caption_weight": _CAPTIONS,
    "detection_max_caption_length": _CAPTIONS,
    "detection_caption_decoder_num_layers": _CAPTIONS,
    "detection_caption_decoder_dim_feedforward_factor": _CAPTIONS,
    "detection_decoder_dim_feedforward_factor": _NO_SUCH_PART,
    "detection_head_dropout": _NO_SUCH_PART,
    "detection_adapter_bottleneck_ratio": _NO_SUCH_PART,
    "detection_adapter_num_layers": _NO_SUCH_PART,
    "adapter_lr": _NO_SUCH_PART,
    "model_size": _OF_THE_MODEL,
    "model_hidden_size": _OF_THE_MODEL,
    "model_num_layers": _OF_THE_MODEL,
    "model_num_attention_heads": _OF_THE_MODEL,
    "model_vocab_size": _OF_THE_MODEL,
    "merge_size": _OF_THE_MODEL,
    "max_dataset_size": _SHORTER,
    "max_examples": _SHORTER,
    "language": "remove it: data.request is the text of the question, in any language",
    "use_candidates": "remove it: data.labels is the label set",
    "candidates_file": "remove it: data.labels is the label set",
    "teacher_type": "remove it: data.teachers names the pool, and who is shown what follows from train.seed",
    "warmup_steps": "remove it: write train.warmup_ratio, a share of the steps",
    "remove_unused_columns": "remove it: it is off, or samples would lose what the Trainer does not know",
    "save_strategy": "remove it: a checkpoint is written every train.save_steps",
    "save_safetensors": "remove it: nothing else is written",
    "trust_remote_code": "remove it: code of a model's folder is never run",
    "dataloader_pin_memory": "remove it: the Trainer's default stands",
    "tb_dir": "remove it: TensorBoard's files are in train.output_dir",
    "logging_dir": "remove it: TensorBoard's files are in train.output_dir",
    "log_level": _PRINTED,
    "verbose": _PRINTED,
    "disable_tqdm": _PRINTED,
    "image_cache": _WORKERS,
    "image_cache_gigabytes": _WORKERS,
}
"""Keys without a new one, and what to do about each."""
