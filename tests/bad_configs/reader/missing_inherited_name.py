from .sizes import BATCH
