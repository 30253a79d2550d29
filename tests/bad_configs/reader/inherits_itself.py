from .inherits_itself import *
