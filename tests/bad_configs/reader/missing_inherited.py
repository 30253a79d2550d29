from .nowhere import *

x = ANYTHING
