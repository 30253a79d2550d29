import os
import os.path as osp
from pathlib import Path

a = os.path.exists('x')
b = osp.join('a', 3)
c = osp.join()
d = osp.dirname('a', 'b')
e = osp.expanduser('~root/x')
f = osp.expanduser('~/x')
g = osp.abspath(path='x')
h = osp.join('a' * 40_000, 'b' * 40_000)
i = Path('x')
j = osp.realpath(__file__)
k = os.listdir('.')
