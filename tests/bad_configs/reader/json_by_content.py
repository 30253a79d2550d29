{
  "train_batch_size": 8,
  "bf16": {"enabled": true}
}
