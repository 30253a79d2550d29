from .cycle_b import *
