BATCH_SIZE = open('x')
SEQ_LEN = 2 * BATCH_SIZE
model = dict(n_layer=lambda: 3, n_head=1 / 0, sizes={'a': eval('1'), 'b': [NOPE]})
for i in range(3):
    pass
MODE = '1d'
