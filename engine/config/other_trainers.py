"""Names of settings in other trainers: nanoGPT, minGPT, DeepSpeed, Megatron-LM, torchtitan, Hugging
Face, Lightning. Used for hints only: none of these names is accepted.

Case, dashes and underscores are ignored: ``micro_batch_size`` also matches ``--micro-batch-size``.
A name with a dot matches in that section only.
"""

from __future__ import annotations

from collections.abc import Mapping

# A name with several meanings elsewhere -> the settings.
AMBIGUOUS: Mapping[str, tuple[str, ...]] = {
    "batch_size": ("BATCH_SIZE", "GLOBAL_BATCH_SIZE"),  # of a rank, of all ranks
}

# A setting, or a setting with its value -> its names elsewhere.
SYNONYMS: Mapping[str, str] = {
    "GLOBAL_BATCH_SIZE": "total_batch_size train_batch_size",
    "BATCH_SIZE": """
        local_batch_size per_device_train_batch_size per_gpu_batch_size per_gpu_train_batch_size
        train_micro_batch_size_per_gpu train_batch_size_per_gpu device_batch_size bs bsz""",
    "SEQ_LEN": """
        block_size context_length context_size ctx_len max_length max_seq_len
        max_seq_length seq seq_length sequence_len sequence_length""",
    "NUM_EPOCHS": "epochs n_epochs num_train_epochs train_epochs",
    "MAX_STEPS": """
        iterations iters max_iters max_train_steps num_iterations num_steps num_train_steps steps
        total_steps train_iters train_steps training_steps""",
    "NUM_MICRO_BATCHES": """
        micro_batches n_micro_batches pipeline_parallel_microbatches""",
    "gradient_accumulation": """
        accum_steps accumulation_steps grad_accum grad_accum_steps
        grad_accumulation gradient_accumulation_steps""",
    "TENSOR_PARALLEL": """
        model_parallel model_parallel_size mp_size tensor_model_parallel_size
        tensor_parallel_degree tensor_parallel_size tp tp_degree tp_size enable_model_parallel""",
    "MODE": "tensor_parallel_mode",
    "PIPELINE": """
        pipeline_model_parallel_size pipeline_parallel pipeline_parallel_degree
        pipeline_parallel_size pipeline_size pipeline_stages num_stages pp pp_degree pp_size""",
    "schedule": "pipeline_parallel_schedule pipeline_schedule pp_schedule",
    "model.type": "arch architecture flavor model.name model_name model_size model_type",
    "model.n_layer": "layers n_layers num_hidden_layers num_layer num_layers",
    "model.n_head": "heads n_heads num_attention_heads num_head num_heads",
    "model.n_embd": """
        d_model dim embed_dim emb_dim embedding_dim embedding_size h_dim hidden_dim n_embed""",
    "model.head_dim": "head_size kv_channels",
    "model.n_inner": "mlp_dim d_ff ffn_dim ffn_hidden_size intermediate_size",
    "model.vocab_size": "padded_vocab_size vocabulary_size n_vocab",
    "model.block_size": "max_position_embeddings max_positions n_ctx n_positions",
    "model.embd_pdrop": "embedding_dropout embed_dropout",
    "model.resid_pdrop": "hidden_dropout residual_dropout",
    "model.attn_pdrop": "attention_dropout attn_dropout",
    "model.tie_embeddings": """
        tie_weights tie_word_embeddings tied_embeddings share_embeddings
        share_embeddings_and_output_weights weight_tying""",
    "model.checkpoint": """
        activation_checkpoint activation_checkpointing checkpoint_activations
        gradient_checkpointing recompute recompute_activations recompute_granularity remat""",
    "model.num_chunks": """
        interleave num_chunks num_model_chunks virtual_pipeline_model_parallel_size
        num_virtual_stages_per_pipeline_rank""",
    "model.activation": "act activation_function activation_func hidden_act",
    "model.layer_norm_epsilon": "layernorm_epsilon layer_norm_eps ln_eps norm_eps norm_epsilon",
    "model.init_std": "init_method_std initializer_range",
    "optimizer": "optimizer_params",
    "optimizer.type": "optim optimizer_name optimizer_type",
    "optimizer.lr": "base_lr initial_lr learning_rate max_learning_rate max_lr peak_lr",
    "optimizer.betas": "adam_beta1 adam_beta2 beta beta1 beta2",
    "optimizer.eps": "adam_eps adam_epsilon epsilon",
    "optimizer.weight_decay": "decay_rate l2 wd",
    "lr_scheduler": "learning_rate_scheduler lr_schedule scheduler",
    "lr_scheduler.type": "decay_type lr_decay_style lr_scheduler_type lr_scheduler_name",
    "lr_scheduler.type='cosine'": "cosine_decay decay_lr lr_decay",
    "lr_scheduler.warmup": """
        lr_warmup lr_warmup_fraction lr_warmup_iters lr_warmup_steps num_warmup_steps warmup_epochs
        warmup_iters warmup_num_steps warmup_ratio warmup_steps warmup_tokens""",
    "lr_scheduler.total": """
        decay_steps final_tokens lr_decay_iters lr_decay_steps lr_decay_tokens num_training_steps
        total_num_steps""",
    "lr_scheduler.eta_min": "lr_min min_learning_rate min_lr",
    "lr_scheduler.floor": "min_lr_factor min_lr_ratio min_lr_rate",
    "clip_grad_norm": """
        clip clip_grad grad_clip grad_clip_norm gradient_clip gradient_clipping max_grad_norm
        max_norm""",
    "precision": """
        compute_dtype dtype mixed_precision mixed_precision_param param_dtype torch_dtype""",
    "precision='bf16'": "bf16 bfloat16 use_bf16",
    "precision='fp16'": "half use_fp16 enable_amp_mode",
    "loss_scale.initial": "initial_loss_scale initial_scale",
    "loss_scale.growth_interval": "loss_scale_window scale_window",
    "loss_scale.min": "min_loss_scale",
    "zero": "zero_config zero_optimization zero_optimizer",
    "zero.stage": "sharding_stage zero_level zero_stage",
    "zero.stage=1": "distributed_optimizer use_distributed_optimizer enable_zero_optim",
    "zero.stage=3": "fsdp full_shard fully_shard use_fsdp sharding_strategy fsdp_config",
    "zero.offload": "offload_optimizer offload_optimizer_device optimizer_offload",
    "zero.offload_params": "offload_param offload_param_device param_offload",
    "zero.nvme_path": "nvme_dir nvme_folder swap_folder",
    "data": "dataset_config train_dataset",
    "data.path": """
        data_dir data_file data_path data_root dataset dataset_path input_file train_data
        train_data_path train_file train_files""",
    "data.tokenizer": "tokenizer_name tokenizer_type",
    "data.validation": "split test_size val_fraction val_split validation_split",
    "data.validation_path": """
        dev_file eval_data eval_dataset eval_file test_file val_data val_dataset val_file val_path
        valid_data valid_data_path valid_file validation_data validation_file""",
    "data.cache": "cache_dir data_cache_path",
    "eval.every": """
        eval_every eval_freq eval_interval eval_steps val_check_interval val_freq val_interval""",
    "eval.epochs": "check_val_every_n_epoch eval_epochs val_epochs",
    "eval.samples": "eval_samples max_eval_samples val_samples",
    "eval.split": "eval_data_split eval_split val_split_name",
    "eval.batches": "eval_batches eval_iters limit_val_batches max_eval_steps val_batches",
    "log.every": """
        log_every log_freq log_interval log_terminal_every logging_steps print_every print_freq
        steps_per_print""",
    "log.dir": """
        default_root_dir dump_folder hydra log_dir logging_dir out_dir output output_dir
        relative_log_path run_dir wandb_run_name work_dir""",
    "log.statistics": "log_activations_every log_grads_every",
    "log.tensorboard": "enable_tensorboard tensorboard tensorboard_dir use_tensorboard",
    "log.wandb": "logger_type enable_wandb report_to use_wandb wandb wandb_log",
    "log.wandb_project": "wandb_project wandb_project_name",
    "checkpoint.every": """
        always_save_checkpoint checkpoint_every checkpoint_interval ckpt_interval
        every_n_train_steps log_ckpt_every save_freq save_interval save_steps""",
    "checkpoint.epochs": "every_n_epochs save_epochs save_every_n_epochs",
    "checkpoint.best_by": "metric_for_best_model",
    "checkpoint.keep": "keep_latest_k max_checkpoints save_top_k save_total_limit",
    "checkpoint.asynchronous": "async_mode async_save",
    "seed": "manual_seed random_seed rng_seed",
    "compile": "compile_model torch_compile use_compile",
    "backend": "ddp_backend dist_backend distributed_backend process_group_backend",
    "timeout": "ddp_timeout dist_timeout distributed_timeout",
}

# The reason why there is no such setting, or its replacement -> the names elsewhere.
EXPLAINED: Mapping[str, str] = {
    "it is derived as GPUS / (TENSOR_PARALLEL x PIPELINE)": """
        data_parallel data_parallel_degree data_parallel_replicate_degree
        data_parallel_shard_degree data_parallel_size dp dp_degree dp_size parallel.data""",
    "it is the number of processes that are started; cuboid train FILE --gpus N sets it": """
        device_count devices gpus n_gpu n_gpus nproc num_devices num_gpus num_processes
        world_size""",
    "torchrun --nnodes N or cuboid slurm FILE --nodes N starts several machines": """
        num_nodes nnodes""",
    "it is derived as BATCH_SIZE / NUM_MICRO_BATCHES": """
        micro_batch_size mbs pipeline_parallel_microbatch_size""",
    "the rates are model.embd_pdrop, model.resid_pdrop and model.attn_pdrop": """
        dropout dropout_p dropout_rate p_dropout""",
    "its keys belong in the section itself": "optimizer.params lr_scheduler.params",
    "cuboid train FILE --resume RUN resumes a run, --init-from PATH loads initial weights": """
        from_pretrained init_from load_checkpoint model_name_or_path pretrained resume resume_from
        resume_from_checkpoint""",
    "a rank uses a GPU if there is one, else the CPU": "accelerator cuda device use_cuda",
    "cuboid evaluate RUN evaluates a trained model": "do_eval eval_only evaluate evaluate_only",
    "attention always uses torch's fused kernels": """
        attn_implementation flash flash_attention flash_attn use_flash use_flash_attention
        use_flash_attn""",
    "MODE='1d' always includes sequence parallelism": "enable_sequence_parallel sequence_parallel",
    "MODE='sequence' is context parallelism over TENSOR_PARALLEL ranks": """
        context_parallel context_parallel_degree context_parallel_size cp cp_size
        sequence_parallel_size sp_size ulysses_degree""",
    "the model is a GPT-2: learned positions, layer norm, GELU, no grouped-query attention": """
        expert_model_parallel_size ffn_type moe multiple_of n_experts n_kv_head n_kv_heads norm
        norm_type normalization num_experts num_key_value_heads num_kv_heads pos_emb
        position_embedding_type rope rope_scaling rope_theta rotary_base swiglu""",
    "log.jsonl and the curves have every step": "log_metrics_every",
    "samples are read without worker processes": """
        dataloader_num_workers dataloader_workers num_data_workers num_workers
        workers""",
    "log.dir or --output sets the folder of a run and its checkpoints, --resume continues it": """
        checkpoint_path ckpt_path snapshot_path""",
    "it is the number of batches of an epoch; set MAX_STEPS, the steps of the run": """
        limit_train_batches""",
    "MAX_STEPS=1 trains a single step": "fast_dev_run",
    "checkpoint.every or checkpoint.minutes saves checkpoints": "callbacks enable_checkpointing",
    "a resumed run continues at its own epoch": "start_epoch",
    "a GPT predicts one of model.vocab_size token ids": "num_classes",
    "the launcher sets it": "dist_url",
    "CUDA_VISIBLE_DEVICES chooses the GPUs": "gpu",
    "torchrun and cuboid train start one process per GPU": "multiprocessing_distributed",
    "the ranks of one copy of the model always read the same batch": "enable_one_data_group",
    "cuboid evaluate RUN --step latest|best|N reads a checkpoint of a run": "checkpoint_file",
    "cuboid evaluate RUN --last-n N --sliding scores the last positions of a sample": "last_n",
    "a run folder has the settings that it was trained with": "config_file wandb_run",
    "a validation reads batches of the size of training; with data.type='lanes', eval.lanes": """
        eval_batch_size test_batch_size""",
    "log.name='auto' names a run by its settings, --output DIR by any name": "comment debug",
    "cuboid throughput FILE --csv FILE writes a table": "results_pickle_file",
    "cuboid throughput doubles BATCH_SIZE until memory runs out": "batch_size_step",
}
