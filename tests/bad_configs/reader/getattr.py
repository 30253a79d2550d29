import os

x = getattr(os, 'system')('touch pwned')
