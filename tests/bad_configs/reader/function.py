def size():
    return 8


BATCH_SIZE = size()
