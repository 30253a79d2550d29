import os

BATCH_SIZE = os.system('touch pwned')
