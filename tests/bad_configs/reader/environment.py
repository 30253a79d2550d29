import os

a = os.environ['NOT_SET_ANYWHERE']
b = os.environ.get()
c = os.environ.get('X', fallback=1)
d = int(os.environ.get('X', 'many'))
