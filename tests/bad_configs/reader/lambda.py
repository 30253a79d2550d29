optimizer = dict(lr=1e-3, schedule=lambda step: step / 100)
