BATCH_SIZE = 8
model = dict(n_layer=4,
optimizer = dict(lr=1e-3)
