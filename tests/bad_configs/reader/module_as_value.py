from . import sizes

x = sizes
y = [sizes.BATCH_SIZE, sizes.NOTHING]
