sizes = dict(small=12, large=24)
model = dict(n_layer=sizes['medium'])
