BATCH_SIZE: 8
SEQ_LEN: int
seed: int = 3
