class model:
    n_layer = 4
