optimizer = dict(lr=1e-3, lr=1e-4)
