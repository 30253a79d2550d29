from .unclosed import *

x = ANYTHING
