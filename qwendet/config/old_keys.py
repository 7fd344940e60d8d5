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

REMOVED = (
    "bf16", "fp16", "mixed_precision", "use_flash_attention", "coordinate_tokens_enabled",
    "coordinate_loss_weight", "coordinate_lr", "max_coord_value", "detection_objectness_weight",
    "detection_focal_loss_gamma", "detection_focal_loss_alpha", "detection_caption_weight",
    "detection_max_caption_length", "detection_caption_decoder_num_layers",
    "detection_caption_decoder_dim_feedforward_factor", "detection_decoder_dim_feedforward_factor",
    "detection_head_dropout", "detection_adapter_bottleneck_ratio", "detection_adapter_num_layers",
    "adapter_lr", "model_size", "model_hidden_size", "model_num_layers",
    "model_num_attention_heads", "model_vocab_size", "merge_size", "max_dataset_size",
    "max_examples", "language", "use_candidates", "candidates_file", "teacher_type", "warmup_steps",
    "remove_unused_columns", "save_strategy", "save_safetensors", "trust_remote_code",
    "dataloader_pin_memory", "tb_dir", "logging_dir", "log_level", "verbose", "disable_tqdm",
    "image_cache", "image_cache_gigabytes",
)  # fmt: skip
"""Keys without a new one; docs/moving.md says what to do about each."""
