from .cycle_a import *
