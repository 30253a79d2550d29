HIDDEN = SIZE * 2
WIDTH = HIDDEN * 4
model = dict(n_embd=HIDDEN, n_inner=WIDTH)
