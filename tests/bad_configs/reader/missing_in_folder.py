from . import nowhere
